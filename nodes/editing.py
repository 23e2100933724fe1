"""Changing a picture or a clip that is there, for both families: inversion, FlowEdit, Keep Structure."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.compat import schema
from ..host.editing import inversion
from ..host.editing.flow_edit import FlowEdit
from ..host.editing.noise import LatentNoise
from ..host.editing.structure import keep_structure

CATEGORY = "Sana/editing"
SAMPLER = "For SamplerCustomAdvanced."


class Inversion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogInversion", display_name="Inversion (Sana + CogVideoX)", category=CATEGORY,
            description="Turns a picture or clip into the noise that the sampler makes it of. Give it the sigmas that the result is "
                        "sampled with, not turned round, and the source's own prompt at CFG 1.",
            search_aliases=["unsampler", "ddim inversion", "flip sigmas", "edict", "fixed point", "invert"],
            inputs=[
                io.Combo.Input("method", options=list(inversion.METHODS), default="fixed point",
                               tooltip="fixed point: nearly exact with euler. plain: DDIM or Euler backwards, quick and rough. midpoint "
                                       "(Sana) and edict (exact at any CFG) go back with the node Way Back."),
                io.Int.Input("iterations", default=3, min=1, max=20, tooltip="Of fixed point: evaluations a step beyond the first."),
                io.Float.Input("tolerance", default=0.001, min=0.0, max=0.1, step=0.0001,
                               tooltip="Of fixed point: a step whose change is below this share is done."),
            ],
            outputs=[io.Sampler.Output(tooltip=f"{SAMPLER} What it gives goes to Latent as Noise.")])

    @classmethod
    def execute(cls, method="fixed point", iterations=3, tolerance=0.001):
        return io.NodeOutput(inversion.inversion(method, iterations, tolerance))


class WayBack(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogWayBack", display_name="Way Back (Sana + CogVideoX)", category=CATEGORY,
            description="The sampler that goes back the way of an inversion by midpoint or edict.",
            search_aliases=["edict", "midpoint", "rf solver", "resample"],
            inputs=[io.Combo.Input("method", options=list(inversion.WAYS_BACK), default="edict",
                                   tooltip="The inversion's. After fixed point and plain, euler is the way back.")],
            outputs=[io.Sampler.Output(tooltip=SAMPLER)])

    @classmethod
    def execute(cls, method="edict"):
        return io.NodeOutput(inversion.way_back(method))


class RFInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogRFInversion", display_name="RF Inversion (Sana + CogVideoX)", category=CATEGORY,
            description="Inversion that is drawn to a noise of the seed, so that the result is easier to edit and less exact. RF Sampler "
                        "is its way back.",
            search_aliases=["rectified flow inversion", "rf edit", "unsampler"],
            inputs=[
                io.Float.Input("gamma", default=0.5, min=0.0, max=1.0, step=0.05,
                               tooltip="How far it is drawn to the noise: 0 not at all, 1 straight."),
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                             tooltip="Of the noise that it is drawn to."),
            ],
            outputs=[io.Sampler.Output(tooltip=f"{SAMPLER} What it gives goes to Latent as Noise.")])

    @classmethod
    def execute(cls, gamma=0.5, seed=0):
        return io.NodeOutput(inversion.rf_inversion(gamma, seed))


class RFSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogRFSampler", display_name="RF Sampler (Sana + CogVideoX)", category=CATEGORY,
            description="Samples drawn to the latent that it is given, the source, in the first part of the steps.",
            search_aliases=["rectified flow", "rf inversion", "controller"],
            inputs=[
                io.Float.Input("eta", default=0.9, min=0.0, max=1.0, step=0.05,
                               tooltip="How far it is drawn to the source: 0 not at all, 1 straight."),
                io.Float.Input("end", default=0.3, min=0.0, max=1.0, step=0.05, tooltip="Share of the steps in which it is."),
            ],
            outputs=[io.Sampler.Output(tooltip=SAMPLER)])

    @classmethod
    def execute(cls, eta=0.9, end=0.3):
        return io.NodeOutput(inversion.rf_sampler(eta, end))


class LatentAsNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogLatentAsNoise", display_name="Latent as Noise (Sana + CogVideoX)", category=CATEGORY,
            description="Begins a sampling with the noise that an inversion gave.",
            search_aliases=["inverted noise", "noise from latent"],
            inputs=[io.Latent.Input("latent", tooltip="From a sampler with Inversion or RF Inversion.")],
            outputs=[io.Noise.Output(tooltip="For SamplerCustomAdvanced, whose latent_image is the source's latent.")])

    @classmethod
    def execute(cls, latent):
        return io.NodeOutput(LatentNoise(latent))


class FlowEditGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def cfg(name, default, what):
            return io.Float.Input(name, default=default, min=0.0, max=30.0, step=0.1, tooltip=f"Guidance of the {what}.")

        return schema(
            node_id="SanaCogFlowEdit", display_name="FlowEdit (Sana + CogVideoX)", category=CATEGORY,
            description="Edits the latent that is sampled from by the difference of two prompts, without an inversion. Words that both "
                        "prompts share keep what they say.",
            search_aliases=["flow edit", "edit", "prompt to prompt", "video editing"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Sana Model or Load CogVideoX Model."),
                io.Conditioning.Input("source", tooltip="What the source shows."),
                io.Conditioning.Input("target", tooltip="What it is to show."),
                io.Conditioning.Input("negative", tooltip="The negative prompt, often empty."),
                cfg("source_cfg", 1.0, "source's prompt"),
                cfg("target_cfg", 2.0, "target's prompt: more changes more"),
                io.Int.Input("skip", default=0, min=0, max=1000, tooltip="Steps left out at the start: more keeps more of the source."),
                io.Int.Input("refine", default=0, min=0, max=1000, tooltip="Steps at the end that sample the target plainly."),
                io.Int.Input("averages", default=1, min=1, max=16, tooltip="Noises a step, averaged: steadier, and as much slower."),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced with euler; its latent_image is the source's latent.")])

    @classmethod
    def execute(cls, model, source, target, negative, source_cfg=1.0, target_cfg=2.0, skip=0, refine=0, averages=1):
        return io.NodeOutput(FlowEdit(model, (source, negative), (target, negative), source_cfg, target_cfg, skip, refine, averages))


class KeepStructure(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def share(name, default, what):
            return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=f"Where in the sampling it {what}.")

        return schema(
            node_id="SanaCogKeepStructure", display_name="Keep Structure (Sana + CogVideoX)", category=CATEGORY,
            description="While the result is sampled, its attention also sees the latent that is sampled from. Best with an inverted noise. "
                        "A step takes twice the time and memory.",
            search_aliases=["attention sharing", "kv injection", "masactrl", "video editing", "ddim inversion"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Sana Model or Load CogVideoX Model."),
                share("start", 0.0, "begins"),
                share("end", 1.0, "ends: sooner gives the prompt more say"),
            ],
            outputs=[io.Model.Output(tooltip="For the second sampler, whose latent_image is the source's latent.")])

    @classmethod
    def execute(cls, model, start=0.0, end=1.0):
        return io.NodeOutput(keep_structure(model, start, end))


NODES = [Inversion, WayBack, RFInversion, RFSampler, LatentAsNoise, FlowEditGuider, KeepStructure]
