"""SAMPLER, SIGMAS and GUIDER objects of the host for CogVideoX.

They work on this pack's MODEL and on ComfyUI's own CogVideoX (0.21 and newer), which differ in what they want
to be fed: x at the host's scale (variance 1 + sigma^2), or at variance 1.
"""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

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
    """The same for CogVideoXDPM. A second stage goes on in the noise where the first stopped: the same again would add up."""
    generator, last = step_generator((extra_args or {}).get("seed")), (None, None)
    run = None if model.noise.any() else trailing_run(model.inner_model.inner_model.model_sampling, sigmas)
    for _ in range(run.first if run else 0):
        torch.randn(x.shape, generator=generator)

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
        x0 = model(fed(x, sigma, sampling), sigma.expand(x.shape[0]), denoise_mask=None, **extra_args)
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


def fed(x, sigma, sampling):
    """A state x of variance 1 as a model wants to be given it at sigma, of one element or as many dimensions as x: the pack's as
    clean + sigma * noise, the host's own CogVideoX as it is. What it makes of its input tells."""
    return x / sampling.calculate_input(sigma, torch.ones_like(sigma, dtype=x.dtype))


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
    table = alphas_of(sampling.sigmas)
    alphas = alphas_of(sigmas)
    run = trailing_run(sampling, sigmas)
    if run is None:
        return list(zip(alphas, alphas[1:]))
    return [(alpha, target_alpha(table, int(sampling.timestep(sigma)), run.steps))
            for alpha, sigma in zip(alphas, sigmas[:-1])]


def alphas_of(sigmas) -> list[float]:
    """Alpha of each sigma, 0 for the one that stands for infinity."""
    alphas = (1.0 / (1.0 + sigmas.double() ** 2)).tolist()
    return [0.0 if alpha < 1.01 * SMALLEST_ALPHA else alpha for alpha in alphas]


class Run(NamedTuple):
    """What a list of sigmas is a part of: a schedule of so many steps, from the step `first` on."""

    steps: int
    first: int


def trailing_run(sampling, sigmas) -> Run | None:
    """The trailing schedule that `sigmas` are, or are a part of without a gap; None for others."""
    whole = float(sigmas[-1]) == 0.0
    sigmas = sigmas[:-1] if whole else sigmas
    found = sampling.timestep(sigmas)
    if not torch.allclose(sampling.sigmas.to(sigmas)[found], sigmas, rtol=1e-5):
        return None
    return _run_of(found.tolist(), whole, trailing_timesteps)


def _run_of(timesteps: list[int], whole: bool, schedule) -> Run | None:
    """The number of steps of whose schedule(steps) the timesteps are a part, to its end if `whole`, and where it begins."""
    stride = timesteps[0] - timesteps[1] if len(timesteps) > 1 else timesteps[0] + 1
    for steps in range(max(len(timesteps), TIMESTEPS // (stride + 1)), TIMESTEPS // max(1, stride - 1) + 1):
        listed = schedule(min(steps, TIMESTEPS))
        first = listed.index(timesteps[0]) if timesteps[0] in listed else len(listed)
        if listed[first:first + len(timesteps)] == timesteps and (not whole or first + len(timesteps) == len(listed)):
            return Run(len(listed), first)
    return None


def steps_of_run(sampling, sigmas, continued: bool) -> int | None:
    """Steps of the whole sampling run that `sigmas` are a part of; None where they do not tell.

    continued: they go on from an earlier part. A run that begins below the first noise level, as in video to video, counts
    from there, as in the reference. Whole runs tell by themselves; parts do in CogVideoX Sigmas, `simple` and `sgm_uniform`.
    """
    if not continued and float(sigmas[-1]) == 0.0:
        return len(sigmas) - 1
    run = trailing_run(sampling, sigmas)
    if run is None:
        # The others are spaced as evenly, but for a timestep here and there (simple) or a fraction (sgm_uniform).
        whole = float(sigmas[-1]) == 0.0
        exact = _timesteps(sampling, sigmas[:-1] if whole else sigmas)
        if len(exact) < 2:
            return None
        stride = (exact[0] - exact[-1]) / (len(exact) - 1)
        steps = round(TIMESTEPS / stride) if stride > 0.0 else 0
        first = round((TIMESTEPS - 1 - exact[0]) / stride) if steps else 0
        even = [TIMESTEPS - 1 - i * TIMESTEPS / steps for i in range(first, first + len(exact))] if steps else []
        if not even or max(abs(a - b) for a, b in zip(exact, even)) > 1.5 or whole and first + len(exact) != steps:
            return None
        run = Run(steps, first)
    return run.steps if continued else run.steps - run.first


def _timesteps(sampling, sigmas) -> list[float]:
    """Timesteps of falling sigmas, with the fraction that lies between two levels."""
    log, table = sigmas.double().log(), sampling.sigmas.to(sigmas).double().log()
    above = torch.searchsorted(table.contiguous(), log.contiguous()).clamp(1, len(table) - 1)
    share = (log - table[above - 1]) / (table[above] - table[above - 1])
    return (above - 1 + share).tolist()


class DynamicGuidance(comfy.samplers.CFGGuider):
    """Classifier-free guidance whose scale moves with the step, between 1 and 1 + `scale`. mode: of GUIDANCE_MODES."""

    def __init__(self, model, scale: float, mode: str):
        super().__init__(model)
        if mode not in GUIDANCE_MODES:
            raise ValueError(f"mode is {mode!r}: choose one of {', '.join(GUIDANCE_MODES)}.")
        check_sampling(model.get_model_object("model_sampling"))
        self.scale, self.mode, self.steps = scale, mode, 0

    def sample(self, noise, latent_image, sampler, sigmas, *args, **kwargs):
        if len(sigmas) > 1 and self.mode == "wave":
            steps = steps_of_run(self.model_patcher.get_model_object("model_sampling"), sigmas, not noise.any())
            if steps is None:
                logging.warning("CogVideoX Dynamic Guidance: these %d sigmas are a part of a run, and do not tell of how many "
                                "steps: the wave swings as in a run of %d. Take CogVideoX Sigmas.",
                                len(sigmas), len(sigmas) - 1)
            self.steps = steps or len(sigmas) - 1
        return super().sample(noise, latent_image, sampler, sigmas, *args, **kwargs)

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        at = int(self.inner_model.model_sampling.timestep(timestep).flatten()[0])
        self.set_cfg(guidance_wave(at, self.steps, self.scale) if self.mode == "wave" else guidance_ramp(at, self.scale))
        return super().predict_noise(x, timestep, model_options, seed)


def cogvideox_guidance(model, positive, negative, cfg: float, mode: str) -> DynamicGuidance:
    """GUIDER of CogVideoX's dynamic guidance: "wave", as the reference has it, or "ramp", the smooth form of it."""
    guider = DynamicGuidance(model, cfg, mode)
    guider.set_conds(positive, negative)
    return guider
