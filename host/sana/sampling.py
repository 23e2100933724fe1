"""Sana's own noise levels and sampler, as SIGMAS and SAMPLER of the host."""

from __future__ import annotations

import comfy.model_sampling
import comfy.samplers
import torch

from ...sana_core.sampling import flow_sigmas, sample_flow_dpm_solver

PURE_NOISE = 0.99  # a run that begins above this sigma begins with noise alone


def flow_dpm_solver() -> comfy.samplers.KSAMPLER:
    """Flow-DPM-Solver++ (2M) for SamplerCustom and SamplerCustomAdvanced."""
    return comfy.samplers.KSAMPLER(sample_from_noise)


def sample_from_noise(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """sana_core's sample_flow_dpm_solver, which begins with the noise itself. The host scales noise by the first sigma, and the
    reference, whose first one is 0.9997 with a shift of 3, does not."""
    latent = model.latent_image
    if sigmas[0] > PURE_NOISE and (latent is None or not latent.any()):
        x = x / sigmas[0]
    return sample_flow_dpm_solver(model, x, sigmas, extra_args, callback, disable)


def sana_sigmas(model, steps: int, denoise: float = 1.0) -> torch.Tensor:
    """SIGMAS that NVlabs samples Sana with -> (steps + 1,), fp32, by the MODEL's shift, ending in 0.

    denoise < 1: the last `steps` of steps / denoise, as the host's schedulers do; 0 gives none. Raises ValueError below 1 step
    and for a model that is no flow with a shift.
    """
    sampling = model.get_model_object("model_sampling")
    shift = getattr(sampling, "shift", None)
    if not isinstance(sampling, comfy.model_sampling.CONST) or shift is None:
        raise ValueError("This model is not sampled as Sana is (a flow whose levels a shift lays out). Take the scheduler of "
                         "BasicScheduler that suits it, or load a Sana model with Load Sana Model.")
    if denoise <= 0.0:
        return torch.empty(0)
    return flow_sigmas(max(steps, int(steps / denoise)) if steps > 0 else steps, float(shift))[-(steps + 1):]
