"""Quantising and saving models of both families."""

from __future__ import annotations

from comfy_api.latest import io

from ..host import quantise
from ..host.compat import schema


class Quantize(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogQuantize", display_name="Quantize Sana / CogVideoX", category="Sana/model",
            description="Saves a Sana or CogVideoX model in 8 or 4 bits, in ComfyUI's own format: half the size or less, and "
                        "faster where the GPU computes in it.",
            search_aliases=["quantise", "quantization", "fp8", "int8", "nvfp4", "save model", "convert"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Sana Model or Load CogVideoX Model; LoRAs on it become part of the "
                                                "file."),
                io.Combo.Input("format", options=list(quantise.FORMATS), default="int8",
                               tooltip="int8: the least loss, ComfyUI 0.27 and newer. fp8: every ComfyUI, best calibrated. "
                                       "nvfp4: the smallest, ComfyUI 0.8 and newer, fast on Blackwell GPUs."),
                io.String.Input("filename_prefix", default=f"{quantise.FOLDER}/sanacog_quantized",
                                tooltip="Name of the file in the output folder. In diffusion_models/ there, the loaders list it "
                                        "after a refresh."),
                io.Int.Input("steps", default=8, min=1, max=200,
                             tooltip="Steps of sampling that fp8 is calibrated with. A few suffice: they go from noise to "
                                     "picture whatever their number."),
                io.Float.Input("cfg", default=4.5, min=0.0, max=100.0, step=0.1,
                               tooltip="Guidance of that sampling, as you will use it: 4.5 for Sana, 6 for CogVideoX, 1 for "
                                       "Sana Sprint."),
                io.Conditioning.Input("positive", optional=True,
                                      tooltip="A prompt to calibrate fp8 with; the other formats need none. Without it fp8 "
                                              "saves memory and no time."),
                io.Conditioning.Input("negative", optional=True, tooltip="The negative prompt of the calibration."),
                io.Latent.Input("latent_image", optional=True,
                                tooltip="An empty latent of the size that you will use, with positive."),
            ],
            outputs=[io.String.Output(tooltip="Where the file is, its size, and which layers stayed as they were, for Preview "
                                              "as Text.")],
            is_output_node=True)

    @classmethod
    def execute(cls, model, format, filename_prefix, steps=8, cfg=4.5, positive=None, negative=None, latent_image=None):
        return io.NodeOutput(quantise.save_quantised(model, format, filename_prefix, positive, negative, latent_image, steps,
                                                     cfg))


NODES = [Quantize]
