"""Faster sampling of both families."""

from __future__ import annotations

from comfy_api.latest import io

from ..host import step_cache
from ..host.compat import schema


class StepCache(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="SanaCogStepCache", display_name="Step Cache (Sana + CogVideoX)", category="Sana/sampling",
            description="Samples faster: a step whose result would change little reuses what the model's blocks gave in the "
                        "last one that was computed.",
            search_aliases=["teacache", "first block cache", "fbcache", "wavespeed", "easycache", "speed up"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Sana Model or Load CogVideoX Model."),
                io.Combo.Input("method", options=list(step_cache.METHODS), default="first block",
                               tooltip="first block: goes by what the first block gives, which is always computed. "
                                       "TeaCache: goes by the time, with its authors' figures for each CogVideoX; for Sana "
                                       "by the first block's input."),
                io.Float.Input("threshold", default=0.1, min=0.0, max=10.0, step=0.005,
                               tooltip="How much may change, as a share. More is faster and further from the full result; 0 "
                                       "is off. 0.05 to 0.15 for first block, 0.1 to 0.3 for TeaCache."),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.001,
                               tooltip="Where in the sampling it begins, 0 to 1. The first step is always computed."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.001,
                               tooltip="Where it ends, 0 to 1. The last step is always computed."),
                io.Int.Input("max_skips", default=3, min=1, max=1000,
                             tooltip="Steps left out one after the other, at most."),
            ],
            outputs=[io.Model.Output(tooltip="For a sampler or guider. How many steps were left out is in the log.")])

    @classmethod
    def execute(cls, model, method="first block", threshold=0.1, start_percent=0.0, end_percent=1.0, max_skips=3):
        return io.NodeOutput(step_cache.step_cache(model, method, threshold, start_percent, end_percent, max_skips))


NODES = [StepCache]
