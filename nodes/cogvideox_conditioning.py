"""What CogVideoX is given besides text: pictures, masked videos, control videos."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.cogvideox.conditioning import fun_control, fun_inpaint, image_to_video
from ..host.compat import schema

_FIT = "Another size is scaled until it covers width x height, and cropped on both sides."


def _common(width=720, height=480, length=49):
    """The inputs that all three share, and that come first."""
    def side(name, default):
        return io.Int.Input(name, default=default, min=16, max=16384, step=16,
                            tooltip=f"{name.capitalize()} of the video in pixels, a multiple of 16.")

    return [
        io.Conditioning.Input("positive", tooltip="The prompt, from a text encode node."),
        io.Conditioning.Input("negative", tooltip="The negative prompt, often empty."),
        io.Vae.Input("vae", tooltip="From Load CogVideoX VAE."),
        side("width", width),
        side("height", height),
        io.Int.Input("length", default=length, min=1, max=16385, step=4,
                     tooltip="Frames of the video: 4 n + 1. The 1.0 models make 49, the 1.5 models 81 or 161."),
        io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="How many videos at once."),
    ]


def _outputs():
    return [io.Conditioning.Output(display_name="positive", tooltip="For the sampler's positive."),
            io.Conditioning.Output(display_name="negative", tooltip="For the sampler's negative."),
            io.Latent.Output(display_name="latent", tooltip="An empty latent of this size, for the sampler.")]


def _noise(advice):
    return [
        io.Float.Input("noise_augmentation", default=0.0, min=0.0, max=1.0, step=0.01,
                       tooltip="Noise on the given pictures before they are encoded (standard deviation, pixels from -1 "
                               f"to 1): more of it lets the video move more and hold to them less. {advice}"),
        io.Int.Input("noise_augmentation_seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF,
                     tooltip="Seed of that noise."),
    ]


class CogVideoXImageToVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogCogVideoXImageToVideo", display_name="CogVideoX Image to Video",
            category="CogVideoX/conditioning",
            description="A picture that the video begins with, for CogVideoX-5B-I2V and 1.5-5B-I2V. The scale of its "
                        "latent that each of them was trained with is set by itself.",
            search_aliases=["i2v", "cogvideo", "start frame", "first frame last frame", "animate picture"],
            inputs=_common() + [
                io.Image.Input("start_image", tooltip=f"The first frame; of several pictures the first is taken. {_FIT}"),
                io.Image.Input("end_image", optional=True,
                               tooltip="The last frame, for models trained with one (CogVideoX-Interpolation); the "
                                       f"official ones were not. Of several pictures the last is taken. {_FIT}"),
                io.Float.Input("strength", default=1.0, min=0.0, max=10.0, step=0.01,
                               tooltip="How strongly the pictures are shown to the model. 1 is what it was trained with; "
                                       "0.7 suits LoRAs for 1.5 that were trained with diffusers' old scale."),
            ] + _noise("Training drew it around 0.05; 0 is right for most."),
            outputs=_outputs())

    @classmethod
    def execute(cls, positive, negative, vae, width, height, length, batch_size, start_image, end_image=None,
                strength=1.0, noise_augmentation=0.0, noise_augmentation_seed=0):
        return io.NodeOutput(*image_to_video(positive, negative, vae, width, height, length, batch_size, start_image,
                                             end_image, strength, noise_augmentation, noise_augmentation_seed))


class CogVideoXFunInpaint(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogCogVideoXFunInpaint", display_name="CogVideoX Fun Inpaint", category="CogVideoX/conditioning",
            description="For CogVideoX-Fun InP: frames that the video begins or ends with, or a video and a mask of what "
                        "is drawn anew. With none of them it is text to video.",
            search_aliases=["inp", "cogvideox fun", "video inpainting", "start frame", "end frame", "masked video"],
            inputs=_common(672, 384) + [
                io.Image.Input("start_image", optional=True,
                               tooltip=f"Frames that the video begins with: 1, 5, 9 ... fit the latents exactly. {_FIT}"),
                io.Image.Input("end_image", optional=True,
                               tooltip="Frames that the video ends with: 4, 8 ... fit the latents exactly; one alone is "
                                       f"shown for the last four. {_FIT}"),
                io.Image.Input("video", optional=True,
                               tooltip=f"A video of which parts are drawn anew, with its mask; at least length frames. {_FIT}"),
                io.Mask.Input("mask", optional=True,
                              tooltip="White where the video is drawn anew: one mask for all frames, or one for each."),
            ] + _noise("Fun V1.1 5B InP was trained with it: 0.056."),
            outputs=_outputs())

    @classmethod
    def execute(cls, positive, negative, vae, width, height, length, batch_size, start_image=None, end_image=None,
                video=None, mask=None, noise_augmentation=0.0, noise_augmentation_seed=0):
        return io.NodeOutput(*fun_inpaint(positive, negative, vae, width, height, length, batch_size, start_image,
                                          end_image, video, mask, noise_augmentation, noise_augmentation_seed))


class CogVideoXFunControl(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogCogVideoXFunControl", display_name="CogVideoX Fun Control", category="CogVideoX/conditioning",
            description="For CogVideoX-Fun Control and Pose: a video of edges, depth or poses that the new one follows.",
            search_aliases=["cogvideox fun", "video control", "pose", "depth", "canny", "mlsd"],
            inputs=_common(672, 384) + [
                io.Image.Input("control_video", tooltip=f"Frames to follow, at least length of them. {_FIT}"),
                io.Float.Input("strength", default=1.0, min=0.0, max=10.0, step=0.01,
                               tooltip="How strongly it is shown to the model; 1 is what it was trained with."),
            ],
            outputs=_outputs())

    @classmethod
    def execute(cls, positive, negative, vae, width, height, length, batch_size, control_video, strength=1.0):
        return io.NodeOutput(*fun_control(positive, negative, vae, width, height, length, batch_size, control_video,
                                          strength))


NODES = [CogVideoXImageToVideo, CogVideoXFunInpaint, CogVideoXFunControl]
