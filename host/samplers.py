"""SAMPLER objects of the host."""

from __future__ import annotations

import comfy.samplers

from ..sana_core.sampling import sample_flow_dpm_solver


def flow_dpm_solver() -> comfy.samplers.KSAMPLER:
    """Flow-DPM-Solver++ (2M) for SamplerCustom and SamplerCustomAdvanced."""
    return comfy.samplers.KSAMPLER(sample_flow_dpm_solver)
