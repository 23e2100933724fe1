"""Loading CogVideoX's parts, its empty latent."""

from __future__ import annotations

from comfy_api.latest import io

from ..host import cogvideox, files, loading
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
                                       "quality; default is right otherwise."),
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


NODES = [LoadCogVideoXModel, EmptyCogVideoXLatent]
