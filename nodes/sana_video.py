"""SANA-Video: its model, its prompt, what a clip begins with, and clips that are drawn block by block."""

from __future__ import annotations

from comfy_api.latest import io

from ..host import files, loading
from ..host.compat import schema
from ..host.sana.text import VIDEO_INSTRUCTIONS, encode_video_prompt
from ..host.sana_video import blockwise, conditioning
from ..host.sana_video.model import load_sana_video


class LoadSanaVideoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogLoadSanaVideoModel", display_name="Load SANA-Video Model", category="Sana/video",
            description="Loads a SANA-Video transformer (2B at 480p and 720p, LongSANA, 2.0; diffusers or NVlabs files) as an "
                        "ordinary MODEL.",
            search_aliases=["sana video", "longsana", "sana-video 2.0", "unet loader", "text to video"],
            inputs=[
                io.Combo.Input("model_name", options=files.choices("diffusion_models"),
                               tooltip="A file or folder in models/diffusion_models, or a diffusers pipeline in models/diffusers."),
                io.Combo.Input("weight_dtype", options=list(loading.WEIGHT_DTYPES), default="default",
                               tooltip="What the weights are kept as. The fp8 types halve the memory and cost some quality; default "
                                       "is right otherwise, and for quantised files, which the other types turn back."),
            ],
            outputs=[io.Model.Output(tooltip="For KSampler and every other node that takes a MODEL.")])

    @classmethod
    def fingerprint_inputs(cls, model_name, weight_dtype):
        return files.fingerprint(files.model_path("diffusion_models", model_name))

    @classmethod
    def execute(cls, model_name, weight_dtype="default"):
        return io.NodeOutput(load_sana_video(files.model_path("diffusion_models", model_name), weight_dtype))


class SanaVideoTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogSanaVideoTextEncode", display_name="SANA-Video Text Encode", category="Sana/video",
            description="Encodes a prompt for SANA-Video: with the instruction that it was trained behind, and how much is to move.",
            search_aliases=["sana video prompt", "motion score", "clip text encode"],
            inputs=[
                io.Clip.Input("clip", tooltip="From Load Sana Text Encoder: Gemma-2-2B-it, the same as for pictures."),
                io.String.Input("text", multiline=True, dynamic_prompts=True,
                                tooltip="What to show, in up to 300 tokens; the rest is cut off."),
                io.Int.Input("motion_score", default=30, min=0, max=100,
                             tooltip="How much moves: 30 as a rule, 20 with 2.0, 10 with LongSANA. 0 leaves it out, as in a "
                                     "negative prompt."),
                io.Combo.Input("instruction", options=list(VIDEO_INSTRUCTIONS), default="as trained",
                               tooltip="What stands before the prompt. as trained: NVlabs' configurations have it. diffusers: what "
                                       "its pipelines put there. none: for the negative prompt."),
            ],
            outputs=[io.Conditioning.Output(tooltip="For a sampler's positive or negative.")])

    @classmethod
    def execute(cls, clip, text, motion_score=30, instruction="as trained"):
        return io.NodeOutput(encode_video_prompt(clip, text, motion_score, instruction))


class SanaVideoImageToVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def side(name, default):
            return io.Int.Input(name, default=default, min=16, max=16384, step=16,
                                tooltip=f"{name.capitalize()} of the video in pixels: a multiple of 16, of 32 with LTX-2's VAE.")

        return schema(
            node_id="SanaCogSanaVideoImageToVideo", display_name="SANA-Video Image to Video", category="Sana/video",
            description="A latent that begins with a picture: the sampler draws what follows, and the model is told that the first "
                        "frame is given.",
            search_aliases=["i2v", "sana video", "start frame", "animate picture"],
            inputs=[
                io.Vae.Input("vae", tooltip="The model's: Wan 2.1's for 480p, LTX-2's for 720p and 2.0."),
                side("width", 832),
                side("height", 480),
                io.Int.Input("length", default=81, min=1, max=16385, step=4,
                             tooltip="Frames of the video: 4 n + 1 with Wan's VAE, 8 n + 1 with LTX-2's."),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="How many videos at once."),
                io.Image.Input("start_image", tooltip="The first frame; of several pictures the first is taken. Another size is "
                                                      "scaled until it covers width x height, and cropped on both sides."),
            ],
            outputs=[io.Latent.Output(tooltip="For a sampler's latent_image.")])

    @classmethod
    def execute(cls, vae, width, height, length, batch_size, start_image):
        return io.NodeOutput(conditioning.image_to_video(vae, width, height, length, batch_size, start_image))


class SanaVideoExtend(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogSanaVideoExtend", display_name="SANA-Video Extend", category="Sana/video",
            description="A clip that goes on: the sampler draws the frames that are added, and leaves those there are as they are.",
            search_aliases=["continue video", "longer", "longsana", "extend"],
            inputs=[
                io.Latent.Input("latent", tooltip="A clip from a sampler, or encoded with the model's VAE."),
                io.Int.Input("frames", default=20, min=1, max=4096,
                             tooltip="Latent frames to add, each 4 frames with Wan's VAE and 8 with LTX-2's. For LongSANA a "
                                     "multiple of 10."),
            ],
            outputs=[io.Latent.Output(tooltip="For a sampler's latent_image: the LongSANA sampler's, or any other.")])

    @classmethod
    def execute(cls, latent, frames=20):
        return io.NodeOutput(conditioning.continued(latent, frames))


class LongSanaSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogLongSanaSampler", display_name="LongSANA Sampler", category="Sana/video",
            description="Draws a clip block by block, in memory that does not grow with its length. For LongSANA, with CFG 1 and "
                        "SANA-Video Sigmas.",
            search_aliases=["longsana", "long video", "autoregressive", "minute", "streaming"],
            inputs=[
                io.Int.Input("frames_per_block", default=blockwise.FRAMES_PER_BLOCK, min=1, max=1024,
                             tooltip="Latent frames that are drawn at once; LongSANA was trained with 10. What is left over goes "
                                     "into the first block."),
                io.Int.Input("window", default=0, min=0, max=1024,
                             tooltip="How many of the last blocks are seen. 0: all of them, which takes no more memory."),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")])

    @classmethod
    def execute(cls, frames_per_block=blockwise.FRAMES_PER_BLOCK, window=0):
        return io.NodeOutput(blockwise.LongSana(frames_per_block, window))


class SanaVideoSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogSanaVideoSigmas", display_name="SANA-Video Sigmas", category="Sana/video",
            description="The four noise levels that a distilled SANA-Video was made for. For the others take Sana Sigmas or a "
                        "scheduler.",
            search_aliases=["longsana", "dmd", "4 step", "few step", "scheduler"],
            inputs=[io.Combo.Input("model", options=list(blockwise.FEW_STEPS), default="LongSANA",
                                   tooltip="LongSANA: with the LongSANA Sampler. SANA-Video 2.0 4-step: with the sampler lcm; "
                                           "both with CFG 1.")],
            outputs=[io.Sigmas.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")])

    @classmethod
    def execute(cls, model="LongSANA"):
        return io.NodeOutput(blockwise.few_step_sigmas(model))


class SanaVideoPromptSwitch(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogSanaVideoPromptSwitch", display_name="SANA-Video Prompt Switch", category="Sana/video",
            description="Another prompt from a frame on, in a clip that the LongSANA Sampler draws. Several can be put one behind "
                        "the other.",
            search_aliases=["prompt schedule", "prompt travel", "longsana", "interactive"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The prompt that the clip begins with."),
                io.Conditioning.Input("following", tooltip="The prompt that follows."),
                io.Int.Input("frame", default=81, min=1, max=65536,
                             tooltip="Frame of the video at which it does: the next block that begins there or later goes by it."),
            ],
            outputs=[io.Conditioning.Output(tooltip="For the guider's positive.")])

    @classmethod
    def execute(cls, conditioning, following, frame=81):
        return io.NodeOutput(blockwise.prompt_switch(conditioning, following, frame))


NODES = [LoadSanaVideoModel, SanaVideoTextEncode, SanaVideoImageToVideo, SanaVideoExtend, LongSanaSampler, SanaVideoSigmas,
         SanaVideoPromptSwitch]
