"""Loading CogVideoX's parts, its empty latent."""

from __future__ import annotations

from comfy_api.latest import io

from ..host import files, loading
from ..host.cogvideox import model as cogvideox
from ..host.cogvideox.text import BRACKETS, load_t5
from ..host.cogvideox.vae import CLIPS, decode_frames, load_cogvideox_vae
from ..host.compat import schema


class LoadCogVideoXModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogLoadCogVideoXModel", display_name="Load CogVideoX Model", category="CogVideoX/loaders",
            description="Loads a CogVideoX transformer (2B, 5B, image to video, 1.5, Fun; diffusers, SAT or ComfyUI "
                        "files) as an ordinary MODEL.",
            search_aliases=["cogvideo", "cogvideox", "video model", "unet loader", "diffusion model"],
            inputs=[
                io.Combo.Input("model_name", options=files.choices("diffusion_models"),
                               tooltip="A file or folder in models/diffusion_models, or a diffusers pipeline in "
                                       "models/diffusers."),
                io.Combo.Input("weight_dtype", options=list(loading.WEIGHT_DTYPES), default="default",
                               tooltip="What the weights are kept as. The fp8 types halve the memory and cost some "
                                       "quality; default is right otherwise, and for quantised files, which the other "
                                       "types turn back."),
                io.Combo.Input("conditioning", options=list(cogvideox.CONDITIONING_CHOICES), default="auto",
                               tooltip="What the model takes besides text. auto is right for released files; some models "
                                       "with 32 input channels show only by their name whether they take a start picture "
                                       "(image, repeated_image) or a control video (control)."),
            ],
            outputs=[io.Model.Output(tooltip="For KSampler and every other node that takes a MODEL.")])

    @classmethod
    def fingerprint_inputs(cls, model_name, weight_dtype, conditioning):
        return files.fingerprint(files.model_path("diffusion_models", model_name))

    @classmethod
    def execute(cls, model_name, weight_dtype="default", conditioning="auto"):
        path = files.model_path("diffusion_models", model_name)
        return io.NodeOutput(cogvideox.load_cogvideox(path, weight_dtype, conditioning))


class LoadCogVideoXVAE(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogLoadCogVideoXVAE", display_name="Load CogVideoX VAE", category="CogVideoX/loaders",
            description="Loads CogVideoX's autoencoder (8 px and 4 frames a latent pixel; diffusers, SAT or ComfyUI files) "
                        "as an ordinary VAE. All versions of CogVideoX share it.",
            search_aliases=["cogvideo vae", "vae loader", "3d-vae", "video vae"],
            inputs=[
                io.Combo.Input("vae_name", options=files.choices("vae"),
                               tooltip="A file in models/vae, or a diffusers pipeline in models/diffusers."),
                io.Combo.Input("clips", options=list(CLIPS), default="auto", optional=True,
                               tooltip="How long clips are cut in time: whole, as in training, which takes more memory; in "
                                       "chunks, as diffusers does. auto: whole where it fits. Up to 13 frames encoded, and "
                                       "81 decoded, there is no difference."),
            ],
            outputs=[io.Vae.Output(tooltip="For CogVideoX Decode, VAE Decode, VAE Encode and their tiled versions.")])

    @classmethod
    def fingerprint_inputs(cls, vae_name, clips="auto"):
        return files.fingerprint(files.model_path("vae", vae_name))

    @classmethod
    def execute(cls, vae_name, clips="auto"):
        return io.NodeOutput(load_cogvideox_vae(files.model_path("vae", vae_name), clips))


class LoadCogVideoXTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogLoadCogVideoXTextEncoder", display_name="Load CogVideoX Text Encoder",
            category="CogVideoX/loaders",
            description="Loads T5-XXL as an ordinary CLIP that reads prompts as CogVideoX was trained: always 226 tokens.",
            search_aliases=["t5", "t5xxl", "clip loader", "cogvideo clip"],
            inputs=[
                io.Combo.Input("text_encoder_name", options=files.choices("text_encoders"),
                               tooltip="T5-XXL (t5xxl_fp16, t5xxl_fp8 and the like): a file or folder in "
                                       "models/text_encoders, or a diffusers pipeline in models/diffusers."),
                io.Combo.Input("tokenizer_name", options=files.tokenizer_choices(), default="auto",
                               tooltip="auto is right: the tokenizer inside the file, else T5's own, which ComfyUI "
                                       "brings along."),
                io.Combo.Input("brackets", options=list(BRACKETS), default="weights", optional=True,
                               tooltip="What (word) and (word:1.2) in a prompt are. weights: a stress, as everywhere in "
                                       "ComfyUI. text: brackets, as CogVideoX's own code and diffusers read them."),
            ],
            outputs=[io.Clip.Output(tooltip="For CLIP Text Encode.")])

    @classmethod
    def fingerprint_inputs(cls, text_encoder_name, tokenizer_name, brackets="weights"):
        return (files.fingerprint(files.model_path("text_encoders", text_encoder_name)),
                files.fingerprint(files.tokenizer_path(tokenizer_name)))

    @classmethod
    def execute(cls, text_encoder_name, tokenizer_name="auto", brackets="weights"):
        return io.NodeOutput(load_t5(files.model_path("text_encoders", text_encoder_name),
                                     files.tokenizer_path(tokenizer_name), brackets=brackets))


class EmptyCogVideoXLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def side(name, default):
            return io.Int.Input(name, default=default, min=16, max=16384, step=16,
                                tooltip=f"{name.capitalize()} of the video in pixels. 720 x 480 for CogVideoX 1.0, up to "
                                        "1360 x 768 for 1.5.")

        return schema(
            node_id="SanaCogEmptyCogVideoXLatent", display_name="Empty CogVideoX Latent", category="CogVideoX/latent",
            description="An empty latent for CogVideoX: 16 channels, 8 px and 4 frames a latent pixel.",
            search_aliases=["empty latent", "latent video", "cogvideo latent"],
            inputs=[
                side("width", 720),
                side("height", 480),
                io.Int.Input("length", default=49, min=1, max=16385, step=4,
                             tooltip="Frames, 4 n + 1: 49 for CogVideoX 1.0 (8 a second), 81 or 161 for 1.5 (16 a second), "
                                     "85 for Fun 1.5."),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="How many videos at once."),
            ],
            outputs=[io.Latent.Output(tooltip="For a sampler's latent_image.")])

    @classmethod
    def execute(cls, width, height, length, batch_size=1):
        return io.NodeOutput(cogvideox.empty_latent(width, height, length, batch_size))


class CogVideoXDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def tile(side, default):
            return io.Int.Input(f"tile_{side}", default=default, min=0, max=16384, step=8,
                                tooltip=f"{side.capitalize()} of a tile in pixels, 0 for the whole frame. Larger frames are "
                                        "decoded tile by tile, which takes less memory and shows faint seams.")

        return schema(
            node_id="SanaCogCogVideoXDecode", display_name="CogVideoX Decode", category="CogVideoX/latent",
            description="Decodes a CogVideoX latent to frames, in tiles where they are larger than one: n latent frames "
                        "become 4 n - 3 frames.",
            search_aliases=["vae decode", "latent to video", "tiled decode", "cogvideo decode"],
            inputs=[
                io.Latent.Input("samples", tooltip="The video's latent, from a sampler."),
                io.Vae.Input("vae", tooltip="From Load CogVideoX VAE."),
                tile("width", 360),
                tile("height", 240),
            ],
            outputs=[io.Image.Output(tooltip="The frames in order, for Create Video, Save Animated WEBP and other image "
                                             "nodes.")])

    @classmethod
    def execute(cls, samples, vae, tile_width=360, tile_height=240):
        return io.NodeOutput(decode_frames(vae, samples["samples"], tile_width, tile_height))


NODES = [LoadCogVideoXModel, LoadCogVideoXVAE, LoadCogVideoXTextEncoder, EmptyCogVideoXLatent, CogVideoXDecode]
