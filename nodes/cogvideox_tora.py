"""Tora: CogVideoX along trajectories."""

from __future__ import annotations

from comfy_api.latest import io

from ..host import files
from ..host.cogvideox.tora import follow_trajectories
from ..host.compat import schema


class CogVideoXTora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        def part(name, what):
            return io.Combo.Input(name, options=files.choices("controlnet"),
                                  tooltip=f"Tora's {what}: a file in models/controlnet.")

        def side(name, default):
            return io.Int.Input(name, default=default, min=64, max=16384, step=16,
                                tooltip=f"{name.capitalize()} of the video in pixels, as of the latent.")

        return schema(
            node_id="SanaCogCogVideoXTora", display_name="CogVideoX Tora", category="CogVideoX/conditioning",
            description="Lets Tora's CogVideoX-5B follow trajectories: where points of the picture go, frame by frame.",
            search_aliases=["tora", "trajectory", "motion", "spline", "optical flow", "drag"],
            inputs=[
                io.Model.Input("model", tooltip="Tora's own transformer, from Load CogVideoX Model."),
                io.Vae.Input("vae", tooltip="From Load CogVideoX VAE."),
                part("fuser_name", "motion fuser (fuser.safetensors)"),
                part("extractor_name", "trajectory extractor (traj_extractor.safetensors)"),
                side("width", 720),
                side("height", 480),
                io.Int.Input("length", default=49, min=5, max=16385, step=4, tooltip="Frames of the video, as of the latent: 4 n + 1."),
                io.String.Input("trajectories", default="[[180, 240], [540, 240]]", multiline=True,
                                tooltip="Points in pixels as JSON, a list or a list of lists: [[180, 240], [540, 240]], or "
                                        '[{"x": 180, "y": 240}, ...] as spline editors give it. The points are spread over all '
                                        "frames."),
                io.Float.Input("strength", default=1.0, min=0.0, max=10.0, step=0.01,
                               tooltip="How strongly the motion is shown to the model. 1 is what it was trained with."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.01, tooltip="From which share of the steps on."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="Up to which share of the steps."),
                io.Image.Input("flow_video", optional=True,
                               tooltip="In place of trajectories (empty them): frames of optical flow, in the usual colours."),
            ],
            outputs=[io.Model.Output(tooltip="For the sampler."),
                     io.Image.Output(display_name="flow", tooltip="The motion as the model is shown it, in colours.")])

    @classmethod
    def fingerprint_inputs(cls, fuser_name, extractor_name, **kwargs):
        return tuple(files.fingerprint(files.model_path("controlnet", name)) for name in (fuser_name, extractor_name))

    @classmethod
    def execute(cls, model, vae, fuser_name, extractor_name, width, height, length, trajectories="", strength=1.0,
                start_percent=0.0, end_percent=1.0, flow_video=None):
        paths = (files.model_path("controlnet", name) for name in (fuser_name, extractor_name))
        return io.NodeOutput(*follow_trajectories(model, vae, *paths, width, height, length, trajectories, flow_video, strength,
                                                  start_percent, end_percent))


NODES = [CogVideoXTora]
