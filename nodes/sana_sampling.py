"""Sana's sampler, noise levels and sizes."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.compat import schema
from ..host.sana.resolution import ASPECT_RATIOS, BASES, resolution
from ..host.sana.sampling import flow_dpm_solver, sana_sigmas


class FlowDPMSolver(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogFlowDPMSolver", display_name="Flow-DPM-Solver++", category="Sana/sampling",
            description="The sampler of the Sana paper, second order, for SamplerCustomAdvanced. 20 steps with Sana Sigmas "
                        "are what Sana was tuned for.",
            search_aliases=["sana sampler", "flow dpm", "dpm solver", "dpmpp 2m flow"],
            inputs=[],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")])

    @classmethod
    def execute(cls):
        return io.NodeOutput(flow_dpm_solver())


class SanaSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogSanaSigmas", display_name="Sana Sigmas", category="Sana/sampling",
            description="The noise levels that NVlabs samples Sana with, by the model's shift. The scheduler 'simple' is close: "
                        "it begins at 1 in place of 0.9997.",
            search_aliases=["scheduler", "sigmas", "flow sigmas", "sana scheduler", "simple"],
            inputs=[
                io.Model.Input("model", tooltip="A Sana model; ModelSamplingSD3 before it sets another shift."),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="20 is what Sana was tuned for."),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Less than 1 starts from the given latent: image to image."),
            ],
            outputs=[io.Sigmas.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")])

    @classmethod
    def execute(cls, model, steps=20, denoise=1.0):
        return io.NodeOutput(sana_sigmas(model, steps, denoise))


class SanaResolution(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def wanted(side):
            return io.Int.Input(f"wanted_{side}", default=0, min=0, max=16384, optional=True,
                                tooltip=f"{side.capitalize()} that you want in the end: the nearest shape is taken, and Sana "
                                        "Crop to Size makes it exact. 0: aspect_ratio decides.")

        return schema(
            node_id="SanaCogSanaResolution", display_name="Sana Resolution", category="Sana/latent",
            description="Width and height that a Sana model was trained with, by shape.",
            search_aliases=["aspect ratio", "sana size", "image size"],
            inputs=[
                io.Combo.Input("base", options=list(BASES), default="1024",
                               tooltip="Size that the model was trained at; its name says it."),
                io.Combo.Input("aspect_ratio", options=list(ASPECT_RATIOS), default="1:1",
                               tooltip="Width to height. The nearest shape that the model knows is taken."),
                wanted("width"),
                wanted("height"),
            ],
            outputs=[
                io.Int.Output(display_name="width", tooltip="Pixels, a multiple of 32."),
                io.Int.Output(display_name="height", tooltip="Pixels, a multiple of 32."),
            ])

    @classmethod
    def execute(cls, base, aspect_ratio, wanted_width=0, wanted_height=0):
        return io.NodeOutput(*resolution(base, aspect_ratio, wanted_width, wanted_height))


NODES = [FlowDPMSolver, SanaSigmas, SanaResolution]
