"""LoRAs of every naming, for both families."""

from __future__ import annotations

import folder_paths
from comfy_api.latest import io

from ..host import files, lora, lora_alpha
from ..host.compat import schema


class LoadLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def strength(name, what):
            return io.Float.Input(name, default=1.0, min=-100.0, max=100.0, step=0.01,
                                  tooltip=f"How strongly the {what} is changed. 0 leaves it as it is.")

        return schema(
            node_id="SanaCogLoadLoRA", display_name="Load LoRA (Sana + CogVideoX)", category="Sana/loaders",
            description="Loads a LoRA of Sana or CogVideoX, whatever program wrote it: diffusers, PEFT, kohya, LyCORIS, "
                        "NVlabs, SAT, CogVideoX-Fun.",
            search_aliases=["lora", "lora loader", "sana lora", "cogvideox lora", "peft", "lycoris"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Sana Model or Load CogVideoX Model."),
                io.Combo.Input("lora_name", options=folder_paths.get_filename_list("loras"),
                               tooltip="A file in models/loras."),
                strength("strength_model", "model"),
                io.Float.Input("alpha", default=0.0, min=0.0, max=4096.0, step=0.5,
                               tooltip="For files that state no alpha, nor an adapter_config.json beside them: the LoRA "
                                       "counts alpha / rank. 0: the rank, so it counts fully. 1 for LoRAs exported from SAT, 64 for "
                                       "those of CogVideoX's own fine-tuning at rank 128."),
                io.Clip.Input("clip", optional=True, tooltip="For LoRAs that change the text encoder too."),
                strength("strength_clip", "text encoder"),
            ],
            outputs=[io.Model.Output(tooltip="The model with the LoRA on it."),
                     io.Clip.Output(tooltip="The text encoder with the LoRA on it, where one was connected.")])

    @classmethod
    def fingerprint_inputs(cls, lora_name, **kwargs):
        path = lora.lora_path(lora_name)
        return files.fingerprint(path) + files.fingerprint(lora_alpha.config_beside(path))

    @classmethod
    def execute(cls, model, lora_name, strength_model=1.0, alpha=0.0, clip=None, strength_clip=1.0):
        return io.NodeOutput(*lora.apply_lora(lora.lora_path(lora_name), model, clip, strength_model, strength_clip, alpha))


NODES = [LoadLoRA]
