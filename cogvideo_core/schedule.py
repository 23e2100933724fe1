"""The noise schedule of CogVideoX, its two samplers as plain functions, and its guidance that moves with the step.

A noisy latent is x = sqrt(alpha) * x0 + sqrt(1 - alpha) * noise, with alpha (the cumulative product of 1 - beta)
falling from near 1 at timestep 0 to exactly 0 at timestep 999. The network predicts
v = sqrt(alpha) * noise - sqrt(1 - alpha) * x0. Alphas are float64, latents keep their dtype.

Source: arXiv 2408.06072 §2.3; diffusers' CogVideoXDDIMScheduler and CogVideoXDPMScheduler, whose numbers these give.
"""

from __future__ import annotations

import math

import torch

TIMESTEPS = 1000
# Sigma is infinite where alpha is 0. ComfyUI puts this alpha in its place (sigma 4518.8), and so do the sigmas here.
SMALLEST_ALPHA = 4.8973451890853435e-08


def alphas_cumprod(snr_shift_scale=1.0):
    """Alpha of every timestep -> (1000,) in float64, last one 0. snr_shift_scale: 3 for the 2B, 1 for all others."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    alphas = (1.0 - betas).cumprod(0)
    alphas = alphas / (snr_shift_scale + (1.0 - snr_shift_scale) * alphas)
    # Zero terminal SNR (arXiv 2305.08891, algorithm 1): shift the root's end to 0, stretch its start back.
    root = alphas.sqrt()
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2


def sigmas(snr_shift_scale=1.0):
    """sqrt((1 - alpha) / alpha) of every timestep -> (1000,) in float64, from 0.029 (2B: 0.051) up to 4518.8."""
    alphas = alphas_cumprod(snr_shift_scale).clamp(min=SMALLEST_ALPHA)
    return ((1.0 - alphas) / alphas).sqrt()


def trailing_timesteps(steps):
    """The timesteps of a run of 1..1000 steps, first to last: 999, 979, ... 19 for 50. A list of `steps` int.

    (For some numbers, 61 say, the reference's list has one more, -1, from rounding; it is left out here.)
    """
    if not 1 <= steps <= TIMESTEPS:
        raise ValueError(f"{steps} steps: CogVideoX's schedule has 1 to {TIMESTEPS}.")
    # Written like numpy.arange, which the reference uses: a tie (48 steps: 937.5) rounds as its sum happens to fall.
    stride = (TIMESTEPS - TIMESTEPS / steps) - TIMESTEPS
    return [round(TIMESTEPS + i * stride) - 1 for i in range(steps)]


def trailing_sigmas(steps, snr_shift_scale=1.0):
    """Sigmas of `trailing_timesteps`, and the closing 0 -> (steps + 1,) in fp32."""
    chosen = sigmas(snr_shift_scale)[trailing_timesteps(steps)]
    return torch.cat([chosen, chosen.new_zeros(1)]).float()


def target_alpha(alphas, timestep, steps):
    """Alpha that a step from `timestep` goes to, as a float.

    The reference subtracts 1000 // steps and does not look at the list of timesteps, so that for a number of steps
    that does not divide 1000 (30, say) it lands a little beside the next one.
    """
    before = timestep - TIMESTEPS // steps
    return float(alphas[before]) if before >= 0 else 1.0


def denoised(x, v, alpha):
    """x0 from the noisy latent and the network's v at alpha."""
    return math.sqrt(alpha) * x - math.sqrt(1.0 - alpha) * v


def ddim_step(x, x0, alpha, next_alpha):
    """One step of CogVideoXDDIM (no noise): x at alpha, its estimate x0 -> x at next_alpha. alpha < 1."""
    ratio = math.sqrt((1.0 - next_alpha) / (1.0 - alpha))
    return ratio * x + (math.sqrt(next_alpha) - math.sqrt(alpha) * ratio) * x0


def dpm_step(x, x0, alpha, next_alpha, noise, last_x0=None, last_alpha=None):
    """One step of CogVideoXDPM, which is SDE-DPM-Solver++(2M): x at alpha, its estimate x0 -> x at next_alpha.

    noise: standard normal, as x. last_x0, last_alpha: those of the step before; without them, and for the step to
    alpha 1, the step is of first order. 0 <= alpha < next_alpha <= 1.
    """
    # With lambda = log(alpha / (1 - alpha)) / 2 and h the step in it, this is exp(-2 h); it has no pole at the ends.
    decay = alpha * (1.0 - next_alpha) / ((1.0 - alpha) * next_alpha)
    if last_x0 is not None and next_alpha < 1.0:
        ratio = (_log_snr(alpha) - _log_snr(last_alpha)) / (_log_snr(next_alpha) - _log_snr(alpha))
        x0 = (1.0 + 0.5 / ratio) * x0 - (0.5 / ratio) * last_x0
    x = math.sqrt((1.0 - next_alpha) / (1.0 - alpha) * decay) * x + (1.0 - decay) * math.sqrt(next_alpha) * x0
    return x + math.sqrt((1.0 - next_alpha) * (1.0 - decay)) * noise


def _log_snr(alpha):
    return -math.inf if alpha <= 0.0 else math.log(alpha / (1.0 - alpha))


def ddim(model, x, steps, snr_shift_scale=1.0):
    """The whole of CogVideoXDDIM: x standard normal noise -> latent. model(x, timestep: int) gives v."""
    alphas = alphas_cumprod(snr_shift_scale)
    for timestep in trailing_timesteps(steps):
        alpha = float(alphas[timestep])
        x = ddim_step(x, denoised(x, model(x, timestep), alpha), alpha, target_alpha(alphas, timestep, steps))
    return x


def dpm(model, x, steps, noise, snr_shift_scale=1.0):
    """The whole of CogVideoXDPM: x standard normal noise -> latent. model(x, timestep: int) gives v; noise(i) gives
    the standard normal noise of step i. (diffusers draws twice a step after the first and uses the second.)"""
    alphas, last_x0, last_alpha = alphas_cumprod(snr_shift_scale), None, None
    for i, timestep in enumerate(trailing_timesteps(steps)):
        alpha = float(alphas[timestep])
        x0 = denoised(x, model(x, timestep), alpha)
        x = dpm_step(x, x0, alpha, target_alpha(alphas, timestep, steps), noise(i), last_x0, last_alpha)
        last_x0, last_alpha = x0, alpha
    return x


def guidance_wave(timestep, steps, scale):
    """Guidance scale of the reference's "dynamic cfg", between 1 and 1 + scale.

    The reference puts the timestep (0..999) where the step's number was meant, so that the scale swings from step to
    step; its authors kept it, because it holds to the prompt like a high scale and does not burn out.
    """
    return 1.0 + scale * (1.0 - math.cos(math.pi * ((steps - timestep) / steps) ** 5)) / 2.0


def guidance_ramp(timestep, scale):
    """The smooth form of the same: from 1 at timestep 999 up to 1 + scale at timestep 0, most of it near the end."""
    return guidance_wave(timestep, TIMESTEPS, scale)
