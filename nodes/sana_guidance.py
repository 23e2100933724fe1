"""Guidance of Sana beyond plain CFG."""

from __future__ import annotations

from comfy_api.latest import io

from ..host.compat import schema
from ..host.sana import guidance
from ..host.sana.text import encode_nvlabs_negative

CATEGORY = "Sana/guidance"


def _part(start, end):
    """Inputs for a part of the sampling. start, end: what they do, for the tooltips."""
    return [io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.001, tooltip=start),
            io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.001, tooltip=end)]


class SanaPAG(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogSanaPAG", display_name="Sana PAG", category=CATEGORY,
            description="Perturbed-attention guidance: steers away from the picture that Sana draws when one block's "
                        "self-attention is switched off. With every sampler and guider, and with CFG or without.",
            search_aliases=["pag", "perturbed attention guidance", "sana guidance"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Sana Model."),
                io.Float.Input("scale", default=2.0, min=0.0, max=100.0, step=0.1,
                               tooltip="How hard it steers. 2 to 2.5 are the authors' values; 0 is off."),
                io.String.Input("blocks", default=guidance.AUTO,
                                tooltip="Whose attention is switched off: auto, or numbers from 0, such as 8 or 7, 8. auto is "
                                        "8 for the models of 20 blocks (1.6B), and the middle one for others."),
                *_part("Where in the sampling it begins, 0 to 1.", "Where it ends, 0 to 1."),
            ],
            outputs=[io.Model.Output(tooltip="For a sampler or guider.")])

    @classmethod
    def execute(cls, model, scale=2.0, blocks=guidance.AUTO, start_percent=0.0, end_percent=1.0):
        return io.NodeOutput(guidance.pag(model, scale, blocks, start_percent, end_percent))


class CFGInterval(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogCFGInterval", display_name="CFG Interval", category=CATEGORY,
            description="CFG in a part of the sampling only. Before and after it the positive prompt alone is evaluated, which "
                        "takes half the time. For any model.",
            search_aliases=["guidance interval", "interval guidance", "limited interval", "cfg schedule", "cfg override"],
            inputs=[
                io.Model.Input("model", tooltip="Any model; Sana's or CogVideoX's, for example."),
                *_part("Where in the sampling CFG begins, 0 to 1.", "Where CFG ends, 0 to 1."),
            ],
            outputs=[io.Model.Output(tooltip="For a sampler or guider.")])

    @classmethod
    def execute(cls, model, start_percent=0.0, end_percent=1.0):
        return io.NodeOutput(guidance.cfg_interval(model, start_percent, end_percent))


class SanaNVlabsNegative(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogSanaNVlabsNegative", display_name="Sana NVlabs Negative", category="Sana/conditioning",
            description="A negative prompt as NVlabs' own code applies it: seen through the positive prompt's mask. For their "
                        "pictures; diffusers' come from Sana Text Encode with the instruction off.",
            search_aliases=["sana negative", "unconditional", "nvlabs mask"],
            inputs=[
                io.Clip.Input("clip", tooltip="From Load Sana Text Encoder."),
                io.Conditioning.Input("positive", tooltip="The positive prompt, from Sana Text Encode. Only its length is taken."),
                io.String.Input("text", multiline=True, dynamic_prompts=True, tooltip="What to keep away from; usually empty."),
            ],
            outputs=[io.Conditioning.Output(tooltip="For a sampler's negative.")])

    @classmethod
    def execute(cls, clip, positive, text=""):
        return io.NodeOutput(encode_nvlabs_negative(clip, positive, text))


NODES = [SanaPAG, CFGInterval, SanaNVlabsNegative]
