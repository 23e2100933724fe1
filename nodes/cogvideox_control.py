"""CogVideoX's ControlNets."""

from __future__ import annotations

from comfy_api.latest import io

from ..host import files, loading
from ..host.cogvideox import control
from ..host.compat import schema


class LoadCogVideoXControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogLoadCogVideoXControlNet", display_name="Load CogVideoX ControlNet", category="CogVideoX/loaders",
            description="Loads a ControlNet of CogVideoX 2B or 5B (TheDenk's: HED, Canny) as an ordinary CONTROL_NET: "
                        "connect it to Apply ControlNet, with the frames of a control video.",
            search_aliases=["controlnet", "controlnet loader", "cogvideo control", "hed", "canny", "edges", "TheDenk"],
            inputs=[
                io.Combo.Input("control_net_name", options=files.choices("controlnet"),
                               tooltip="A file or folder in models/controlnet. In a folder its config.json, which says "
                                       "what the file does not, is read too."),
                io.Combo.Input("weight_dtype", options=list(loading.WEIGHT_DTYPES), default="default",
                               tooltip="What the weights are kept as. The fp8 types halve the memory and cost some quality; "
                                       "default is right otherwise."),
            ],
            outputs=[io.ControlNet.Output(tooltip="For Apply ControlNet. It reads the frames as they are, without a VAE.")])

    @classmethod
    def fingerprint_inputs(cls, control_net_name, **kwargs):
        return files.fingerprint(files.model_path("controlnet", control_net_name))

    @classmethod
    def execute(cls, control_net_name, weight_dtype="default"):
        path = files.model_path("controlnet", control_net_name)
        return io.NodeOutput(control.load_cogvideox_controlnet(path, weight_dtype))


NODES = [LoadCogVideoXControlNet]
