"""Sana Sprint: pictures in one to four steps."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.compat import schema
from ..host.sana import sprint

CATEGORY = "Sana/sampling"


def _steps():
    return io.Int.Input("steps", default=2, min=1, max=100, tooltip="2 is what Sprint was tuned for; 1 to 4 make sense.")


def _denoise():
    return io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01,
                          tooltip="Less than 1 starts from the given latent: image to image.")


class SanaSprintSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogSanaSprintSampler", display_name="Sana Sprint Sampler", category=CATEGORY,
            description="Draws with a Sana Sprint model in one to four steps, from a prompt to a latent.",
            search_aliases=["sprint", "sana sprint", "one step", "few step", "scm", "ksampler"],
            inputs=[
                io.Model.Input("model", tooltip="A Sprint model, from Load Sana Model."),
                io.Conditioning.Input("positive", tooltip="The prompt. Sprint takes no negative prompt."),
                io.Latent.Input("latent_image", tooltip="From Empty Sana Latent, or a picture's for image to image."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True,
                             tooltip="Seed of all noise."),
                _steps(),
                io.Float.Input("guidance", default=4.5, min=0.0, max=20.0, step=0.1,
                               tooltip="How closely the prompt is followed; built into the model. 4 to 5 is what it learned."),
                _denoise(),
            ],
            outputs=[io.Latent.Output(tooltip="For VAE Decode.")])

    @classmethod
    def execute(cls, model, positive, latent_image, seed, steps=2, guidance=4.5, denoise=1.0):
        return io.NodeOutput(sprint.sample_sprint(model, positive, latent_image, steps, guidance, seed, denoise))


class SanaSprintSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogSanaSprintSigmas", display_name="Sana Sprint Sigmas", category=CATEGORY,
            description="The noise levels of Sana Sprint (1, 0.783, 0 for two steps), for the stock sampler lcm or Sana sCM.",
            search_aliases=["sprint scheduler", "sigmas", "lcm"],
            inputs=[_steps(), _denoise()],
            outputs=[io.Sigmas.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")])

    @classmethod
    def execute(cls, steps=2, denoise=1.0):
        return io.NodeOutput(sprint.sigmas(steps, denoise))


class SanaSCM(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogSanaSCM", display_name="Sana sCM", category=CATEGORY,
            description="Sana Sprint's own sampler, for SamplerCustomAdvanced with Sana Sprint Sigmas. Its noise comes from "
                        "the seed alone, the same on every device.",
            search_aliases=["scm", "sprint sampler", "consistency", "lcm"],
            inputs=[],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom and SamplerCustomAdvanced.")])

    @classmethod
    def execute(cls):
        return io.NodeOutput(sprint.scm())


NODES = [SanaSprintSampler, SanaSprintSigmas, SanaSCM]
