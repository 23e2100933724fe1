"""CogVideoX's own samplers, timesteps and guidance, for SamplerCustomAdvanced."""

from __future__ import annotations

from comfy_api.latest import io

from ..host import samplers
from ..host.compat import schema

CATEGORY = "CogVideoX/sampling"


class CogVideoXSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogCogVideoXSigmas", display_name="CogVideoX Sigmas", category=CATEGORY,
            description="The timesteps that CogVideoX is sampled at (trailing: 999, 979, ... for 50), as SIGMAS.",
            search_aliases=["cogvideo scheduler", "trailing", "timesteps", "basic scheduler"],
            inputs=[
                io.Model.Input("model", tooltip="From Load CogVideoX Model, or ComfyUI's own CogVideoX."),
                io.Int.Input("steps", default=50, min=1, max=1000, tooltip="50 is what the models were shown with."),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Less than 1 starts from the given latent, for video to video; 0.8 is usual."),
            ],
            outputs=[io.Sigmas.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")])

    @classmethod
    def execute(cls, model, steps, denoise=1.0):
        return io.NodeOutput(samplers.cogvideox_sigmas(model, steps, denoise))


class CogVideoXDDIM(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogCogVideoXDDIM", display_name="CogVideoX DDIM", category=CATEGORY,
            description="The reference's DDIM, for CogVideoX-2B and plain guidance. The seed decides the first noise "
                        "alone.",
            search_aliases=["cogvideo sampler", "ddim"],
            inputs=[],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced, with CogVideoX Sigmas.")])

    @classmethod
    def execute(cls):
        return io.NodeOutput(samplers.cogvideox_ddim())


class CogVideoXDPM(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogCogVideoXDPM", display_name="CogVideoX DPM", category=CATEGORY,
            description="The reference's DPM (SDE-DPM-Solver++ 2M), for the 5B models with dynamic guidance.",
            search_aliases=["cogvideo sampler", "cogvideoxdpm", "dpm", "sde"],
            inputs=[],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced, with CogVideoX Sigmas.")])

    @classmethod
    def execute(cls):
        return io.NodeOutput(samplers.cogvideox_dpm())


class CogVideoXDynamicGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogCogVideoXDynamicGuidance", display_name="CogVideoX Dynamic Guidance", category=CATEGORY,
            description="Guidance whose scale moves with the step between 1 and 1 + cfg, as CogVideoX's authors advise for "
                        "the 5B models.",
            search_aliases=["dynamic cfg", "cfg guider", "cogvideo guider"],
            inputs=[
                io.Model.Input("model", tooltip="From Load CogVideoX Model, or ComfyUI's own CogVideoX."),
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt, often empty."),
                io.Float.Input("cfg", default=6.0, min=0.0, max=100.0, step=0.1,
                               tooltip="How far the scale rises over 1."),
                io.Combo.Input("mode", options=list(samplers.GUIDANCE_MODES), default="wave",
                               tooltip="wave: the reference's, which swings from step to step. ramp: rises smoothly, most "
                                       "of it near the end."),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced.")])

    @classmethod
    def execute(cls, model, positive, negative, cfg=6.0, mode="wave"):
        return io.NodeOutput(samplers.cogvideox_guidance(model, positive, negative, cfg, mode))


NODES = [CogVideoXSigmas, CogVideoXDDIM, CogVideoXDPM, CogVideoXDynamicGuidance]
