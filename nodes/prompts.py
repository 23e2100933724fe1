"""Words for both families."""

from __future__ import annotations

from comfy_api.latest import io

from ..host import enhance
from ..host.compat import GENERATES_SINCE, schema


class EnhancePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogEnhancePrompt", display_name="Enhance Prompt (Sana + CogVideoX)", category="Sana/conditioning",
            description="Writes a short prompt out to the detail that the models were trained with, by the language model "
                        f"that is loaded anyway. Needs ComfyUI {GENERATES_SINCE} or newer.",
            search_aliases=["prompt enhancer", "expand prompt", "prompt upsampling", "rewrite prompt", "llm", "gemma"],
            inputs=[
                io.Clip.Input("clip", tooltip="From Load Sana Text Encoder (Gemma-2), or another language model. "
                                              "CogVideoX's T5 cannot write."),
                io.String.Input("prompt", multiline=True, dynamic_prompts=True, tooltip="What to write out; a few words."),
                io.Combo.Input("template", options=list(enhance.TEMPLATES), default="Sana picture",
                               tooltip="What it is written out to: a picture in detail, or one shot with what moves in it."),
                io.Int.Input("seed", default=0, min=0, max=0xffffffffffffffff, control_after_generate=True,
                             tooltip="Another seed gives other words."),
                io.Int.Input("max_length", default=256, min=1, max=2048,
                             tooltip="In tokens. Sana reads 300, CogVideoX 226."),
                io.Float.Input("temperature", default=0.7, min=0.0, max=2.0, step=0.01,
                               tooltip="How freely it writes. 0: always the likeliest word, whatever the seed."),
            ],
            outputs=[io.String.Output(display_name="enhanced", tooltip="For a text encode node."),
                     io.String.Output(display_name="original", tooltip="The prompt as it was.")])

    @classmethod
    def execute(cls, clip, prompt, template="Sana picture", seed=0, max_length=256, temperature=0.7):
        return io.NodeOutput(enhance.enhance(clip, prompt, template, seed, max_length, temperature), prompt)


NODES = [EnhancePrompt]
