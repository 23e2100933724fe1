"""CogVideoX' videos beyond one clip: continued, joined, in a loop, changed in a part."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.cogvideox import continuation, loop, masks
from ..host.compat import schema


def _overlap(what):
    return io.Int.Input("overlap", default=9, min=1, max=16385, step=4, tooltip=f"{what}: 1, 5, 9 ...")


class ContinueVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogCogVideoXContinueVideo", display_name="CogVideoX Continue Video", category="CogVideoX/video",
            description="Begins a next stretch of a video with its last frames: held by a noise mask, and shown to models "
                        "that take pictures. CogVideoX Join Videos makes one video of both.",
            search_aliases=["extend video", "longer video", "continuation", "last frame", "autoregressive"],
            inputs=[
                io.Model.Input("model", tooltip="From Load CogVideoX Model: the one that is sampled, which decides how it "
                                                "is shown the frames."),
                io.Conditioning.Input("positive", tooltip="What the next stretch shows."),
                io.Conditioning.Input("negative", tooltip="The negative prompt, often empty."),
                io.Vae.Input("vae", tooltip="From Load CogVideoX VAE."),
                io.Image.Input("video", tooltip="The frames so far. Their sides are multiples of 16."),
                io.Int.Input("length", default=49, min=5, max=16385, step=4,
                             tooltip="Frames of the stretch, those of the overlap among them: 4 n + 1. As many as the "
                                     "model makes."),
                _overlap("Frames that both have in common. More of them keep the motion"),
            ],
            outputs=[io.Conditioning.Output(display_name="positive", tooltip="For the sampler's positive."),
                     io.Conditioning.Output(display_name="negative", tooltip="For the sampler's negative."),
                     io.Latent.Output(display_name="latent",
                                      tooltip="For the sampler, with the frames and a noise mask in it.")])

    @classmethod
    def execute(cls, model, positive, negative, vae, video, length=49, overlap=9):
        return io.NodeOutput(*continuation.continued(model, positive, negative, vae, video, length, overlap))


class JoinVideos(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogCogVideoXJoinVideos", display_name="CogVideoX Join Videos", category="CogVideoX/video",
            description="Joins a video and its continuation: the frames that both have fade from the one to the other, and "
                        "the colours are held.",
            search_aliases=["extend video", "concatenate videos", "crossfade", "colour match"],
            inputs=[
                io.Image.Input("first", tooltip="The frames so far."),
                io.Image.Input("second", tooltip="The stretch that goes on, with the overlap at its start."),
                io.Int.Input("overlap", default=9, min=1, max=16385,
                             tooltip="Frames that both have, as in CogVideoX Continue Video."),
                io.Float.Input("hold_colour", default=1.0, min=0.0, max=1.0, step=0.05,
                               tooltip="How far the second's colours are moved to the first's, by what differs in the "
                                       "overlap."),
            ],
            outputs=[io.Image.Output(tooltip="All frames, for Create Video or the next Continue Video.")])

    @classmethod
    def execute(cls, first, second, overlap=9, hold_colour=1.0):
        return io.NodeOutput(continuation.joined(first, second, overlap, hold_colour))


class Loop(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogCogVideoXLoop", display_name="CogVideoX Loop", category="CogVideoX/video",
            description="Makes videos whose end goes over into their beginning: the latents are turned on in a circle "
                        "before each step. CogVideoX Loop Decode makes the frames.",
            search_aliases=["seamless loop", "looping video", "mobius", "latent shift", "cyclic"],
            inputs=[
                io.Model.Input("model", tooltip="From Load CogVideoX Model: text to video, or Fun Control."),
                io.Int.Input("shift", default=1, min=1, max=64,
                             tooltip="Latents by which the circle is turned on before each step."),
            ],
            outputs=[io.Model.Output(tooltip="For any sampler.")])

    @classmethod
    def execute(cls, model, shift=1):
        return io.NodeOutput(loop.looping(model, shift))


class LoopDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def tile(side, default):
            return io.Int.Input(f"tile_{side}", default=default, min=0, max=16384, step=8,
                                tooltip=f"{side.capitalize()} of a tile in pixels, 0 for the whole frame.")

        return schema(
            node_id="SanaCogCogVideoXLoopDecode", display_name="CogVideoX Loop Decode", category="CogVideoX/video",
            description="Decodes the latent of a loop: n latent frames become 4 n frames, the first of which goes "
                        "on from the last.",
            search_aliases=["vae decode", "seamless loop", "looping video"],
            inputs=[
                io.Latent.Input("samples", tooltip="From a sampler whose model came from CogVideoX Loop."),
                io.Vae.Input("vae", tooltip="From Load CogVideoX VAE."),
                tile("width", 360),
                tile("height", 240),
                io.Boolean.Input("repeat_first", default=False,
                                 tooltip="The first frame again at the end, for a video that is not played in a loop: "
                                         "4 n + 1 frames."),
            ],
            outputs=[io.Image.Output(tooltip="The frames in order, for Create Video, Save Animated WEBP and other image "
                                             "nodes.")])

    @classmethod
    def execute(cls, samples, vae, tile_width=360, tile_height=240, repeat_first=False):
        return io.NodeOutput(loop.decode_circle(vae, samples["samples"], tile_width, tile_height, repeat_first))


class MaskVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogCogVideoXMaskVideo", display_name="CogVideoX Mask Video", category="CogVideoX/video",
            description="Draws only what is white in a mask, which may move: one for each frame. All that shares a latent "
                        "cell of 8 x 8 pixels and 4 frames with something white is drawn.",
            search_aliases=["set latent noise mask", "video inpainting", "masked video", "mask sequence"],
            inputs=[
                io.Latent.Input("samples", tooltip="The video, from VAE Encode."),
                io.Mask.Input("mask",
                              tooltip="White where the video is drawn anew: one mask for all frames, or one for each."),
            ],
            outputs=[io.Latent.Output(tooltip="For a sampler.")])

    @classmethod
    def execute(cls, samples, mask):
        return io.NodeOutput(masks.masked(samples, mask))


NODES = [ContinueVideo, JoinVideos, Loop, LoopDecode, MaskVideo]
