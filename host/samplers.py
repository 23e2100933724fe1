"""SAMPLER, SIGMAS and GUIDER objects of the host for CogVideoX.

They work on this pack's MODEL and on ComfyUI's own CogVideoX (0.21 and newer), which differ in what they want
to be fed: x at the host's scale (variance 1 + sigma^2), or at variance 1.
"""

from __future__ import annotations

import math

import comfy.model_sampling
import comfy.samplers
import torch
from tqdm.auto import trange

from ..cogvideo_core.schedule import (
    SMALLEST_ALPHA,
    TIMESTEPS,
    ddim_step,
    dpm_step,
    guidance_ramp,
    guidance_wave,
    target_alpha,
    trailing_timesteps,
)

GUIDANCE_MODES = ("wave", "ramp")


def cogvideox_ddim() -> comfy.samplers.KSAMPLER:
    """CogVideoXDDIM for SamplerCustom and SamplerCustomAdvanced: deterministic."""
    return comfy.samplers.KSAMPLER(sample_ddim)


def cogvideox_dpm() -> comfy.samplers.KSAMPLER:
    """CogVideoXDPM, which is SDE-DPM-Solver++(2M), with noise of its own from the seed."""
    return comfy.samplers.KSAMPLER(sample_dpm)


def cogvideox_sigmas(model, steps: int, denoise: float = 1.0):
    """SIGMAS at CogVideoX's trailing timesteps -> (steps + 1,), fp32, from the model's own noise levels, ending in 0.

    denoise < 1: the last `steps` of steps / denoise, as the host's schedulers do; 0 gives none.
    Raises ValueError for another model and for more steps than there are timesteps.
    """
    sampling = model.get_model_object("model_sampling")
    check_sampling(sampling)
    if denoise <= 0.0:
        return torch.empty(0)
    total = int(steps / denoise)
    if not 1 <= steps <= total <= TIMESTEPS:
        raise ValueError(f"{steps} steps at denoise {denoise:g} are the end of a run of {total}; CogVideoX's schedule has 1 "
                         f"to {TIMESTEPS}. Take fewer steps, or more denoise.")
    sigmas = sampling.sigmas[trailing_timesteps(total)].float().cpu()
    return torch.cat([sigmas, sigmas.new_zeros(1)])[-(steps + 1):]


def sample_ddim(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """The host's sampler function for CogVideoXDDIM. x (B, 16, T, h, w) at the host's scale, sigmas falling."""
    return _sample(model, x, sigmas, extra_args, callback, disable, lambda i, x, x0, alpha, next_alpha: ddim_step(
        x, x0, alpha, next_alpha))


def sample_dpm(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """The same for CogVideoXDPM."""
    generator, last = step_generator((extra_args or {}).get("seed")), (None, None)

    def step(i, x, x0, alpha, next_alpha):
        nonlocal last
        noise = torch.randn(x.shape, generator=generator).to(x)
        x, last = dpm_step(x, x0, alpha, next_alpha, noise, *last), (x0, alpha)
        return x

    return _sample(model, x, sigmas, extra_args, callback, disable, step)


def step_generator(seed: int | None) -> torch.Generator:
    """Of the noise that a sampler adds: on the CPU, so that every device gives the same, and not seeded with the seed
    itself, with which the host has drawn the first noise."""
    return torch.Generator().manual_seed(((seed or 0) + 1) % 2**64)


def _sample(model, x, sigmas, extra_args, callback, disable, step):
    """The loop: x goes from sigma to sigma at variance 1, where the reference's formulas hold."""
    extra_args = dict(extra_args or {})
    mask = extra_args.pop("denoise_mask", None)
    sampling = model.inner_model.inner_model.model_sampling
    check_sampling(sampling)
    alphas = alphas_of_steps(sampling, sigmas)
    x = x / (1.0 + sigmas[0] ** 2).sqrt()
    for i in trange(len(alphas), disable=disable):
        sigma, (alpha, next_alpha) = sigmas[i], alphas[i]
        if mask is not None:
            drawn = mask
            if change := extra_args.get("model_options", {}).get("denoise_mask_function"):
                drawn = change(sigma.expand(x.shape[0]), mask, extra_options={"model": model.inner_model, "sigmas": sigmas})
            x = x * drawn + (math.sqrt(alpha) * model.latent_image + math.sqrt(1.0 - alpha) * model.noise) * (1.0 - drawn)
        # What the model makes of its input tells what it wants to be given.
        fed = x / sampling.calculate_input(sigma, x.new_ones(()))
        x0 = model(fed, sigma.expand(x.shape[0]), denoise_mask=None, **extra_args)
        if alpha == 0.0:
            # The host's last sigma is finite: take the little of x out again that it leaves in x0.
            root = 1.0 / (1.0 + sigma**2).sqrt()
            x0 = (x0 - root * x) / (1.0 - root**2).sqrt()
        if mask is not None:
            x0 = x0 * drawn + model.latent_image * (1.0 - drawn)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": x0})
        x = step(i, x, x0, alpha, next_alpha)
    return x * (1.0 + sigmas[-1] ** 2).sqrt()


def check_sampling(sampling) -> None:
    """Raise ValueError unless a model's noise levels are of CogVideoX's kind."""
    if (not isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete)
            or isinstance(sampling, comfy.model_sampling.CONST) or len(sampling.sigmas) != TIMESTEPS):
        raise ValueError("This model is not sampled as CogVideoX is (1000 discrete noise levels, no flow). Take KSampler or "
                         "another sampler and scheduler, or load the model with Load CogVideoX Model.")


def alphas_of_steps(sampling, sigmas) -> list[tuple[float, float]]:
    """(alpha at the step's start, alpha at its end) for each step of sigmas (n + 1,). Raises ValueError unless they fall.

    Sigmas of a trailing schedule, or a part of it, are stepped as the reference does, which ends a step 1000 // steps
    timesteps below its start: for 30 steps, say, that is a little beside the next sigma. Others go to the next sigma.
    """
    values = sigmas.double().tolist()
    if len(values) < 2 or any(after >= before for before, after in zip(values, values[1:])) or values[-1] < 0:
        some = ", ".join(f"{value:g}" for value in values[:6]) + " ..." * (len(values) > 6)
        raise ValueError(f"The sigmas of this sampler must fall, to 0 or above it; they are {some}. Take CogVideoX Sigmas.")
    table = _alphas(sampling.sigmas)
    alphas = _alphas(sigmas)
    steps = _trailing_steps(sampling, sigmas)
    if steps is None:
        return list(zip(alphas, alphas[1:]))
    return [(alpha, target_alpha(table, int(sampling.timestep(sigma)), steps)) for alpha, sigma in zip(alphas, sigmas[:-1])]


def _alphas(sigmas) -> list[float]:
    """Alpha of each sigma, 0 for the one that stands for infinity."""
    alphas = (1.0 / (1.0 + sigmas.double() ** 2)).tolist()
    return [0.0 if alpha < 1.01 * SMALLEST_ALPHA else alpha for alpha in alphas]


def _trailing_steps(sampling, sigmas) -> int | None:
    """Number of steps of the trailing schedule that `sigmas` are, or are a part of without a gap; None for others."""
    whole = float(sigmas[-1]) == 0.0
    sigmas = sigmas[:-1] if whole else sigmas
    found = sampling.timestep(sigmas)
    if not torch.allclose(sampling.sigmas.to(sigmas)[found], sigmas, rtol=1e-5):
        return None
    found = found.tolist()
    stride = found[0] - found[1] if len(found) > 1 else found[0] + 1
    for steps in range(max(len(found), TIMESTEPS // (stride + 1)), TIMESTEPS // max(1, stride - 1) + 1):
        timesteps = trailing_timesteps(min(steps, TIMESTEPS))
        first = timesteps.index(found[0]) if found[0] in timesteps else len(timesteps)
        if timesteps[first:first + len(found)] == found and (not whole or first + len(found) == len(timesteps)):
            return len(timesteps)
    return None


class DynamicGuidance(comfy.samplers.CFGGuider):
    """Classifier-free guidance whose scale moves with the step, between 1 and 1 + `scale`. mode: of GUIDANCE_MODES."""

    def __init__(self, model, scale: float, mode: str):
        super().__init__(model)
        if mode not in GUIDANCE_MODES:
            raise ValueError(f"mode is {mode!r}: choose one of {', '.join(GUIDANCE_MODES)}.")
        check_sampling(model.get_model_object("model_sampling"))
        self.scale, self.mode = scale, mode

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        at = int(self.inner_model.model_sampling.timestep(timestep).flatten()[0])
        steps = len(model_options["transformer_options"]["sample_sigmas"]) - 1
        self.set_cfg(guidance_wave(at, steps, self.scale) if self.mode == "wave" else guidance_ramp(at, self.scale))
        return super().predict_noise(x, timestep, model_options, seed)


def cogvideox_guidance(model, positive, negative, cfg: float, mode: str) -> DynamicGuidance:
    """GUIDER of CogVideoX's dynamic guidance: "wave", as the reference has it, or "ramp", the smooth form of it."""
    guider = DynamicGuidance(model, cfg, mode)
    guider.set_conds(positive, negative)
    return guider
