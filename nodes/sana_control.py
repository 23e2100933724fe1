"""Sana's ControlNet."""

from __future__ import annotations

from comfy_api.latest import io

from ..host import files, loading
from ..host.compat import schema
from ..host.sana import control


class LoadSanaControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogLoadSanaControlNet", display_name="Load Sana ControlNet", category="Sana/loaders",
            description="Loads a ControlNet of Sana (NVlabs or diffusers files) as an ordinary CONTROL_NET: connect it to "
                        "Apply ControlNet, together with the VAE.",
            search_aliases=["controlnet", "controlnet loader", "sana control", "hed", "scribble", "edges"],
            inputs=[
                io.Combo.Input("control_net_name", options=files.choices("controlnet"),
                               tooltip="A file or folder in models/controlnet, or a diffusers pipeline with a ControlNet in "
                                       "models/diffusers."),
                io.Combo.Input("weight_dtype", options=list(loading.WEIGHT_DTYPES), default="default",
                               tooltip="What the weights are kept as. The fp8 types halve the memory and cost some quality; "
                                       "default is right otherwise."),
                io.Combo.Input("wiring", options=list(control.WIRING_CHOICES), default="auto",
                               tooltip="How it is joined to the model. auto: as the file says. native is NVlabs' way, "
                                       "diffusers that of diffusers: try the other one only with a file that was converted."),
            ],
            outputs=[io.ControlNet.Output(tooltip="For Apply ControlNet, whose vae input must be connected too.")])

    @classmethod
    def fingerprint_inputs(cls, control_net_name, **kwargs):
        return files.fingerprint(files.model_path("controlnet", control_net_name))

    @classmethod
    def execute(cls, control_net_name, weight_dtype="default", wiring="auto"):
        path = files.model_path("controlnet", control_net_name)
        return io.NodeOutput(control.load_sana_controlnet(path, weight_dtype, wiring))


NODES = [LoadSanaControlNet]
