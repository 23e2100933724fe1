"""Sana's samplers as plain functions in the manner of k-diffusion: Flow-DPM-Solver++ (2M), the solver of the paper,
and Sprint's continuous-time consistency sampling (sCM)."""

from __future__ import annotations

import math

import torch

SPRINT_START, SPRINT_MIDDLE = math.pi / 2, 1.3  # angles; the middle is that of two steps, which Sprint was tuned for


def flow_sigmas(steps: int, shift: float = 3.0, timesteps: int = 1000) -> torch.Tensor:
    """Noise levels that Sana is sampled with, (steps + 1,) in fp32, descending, ending in 0.

    shift: SanaParams.flow_shift; s -> shift * s / (1 + (shift - 1) * s). Source: facts/sana.md 2.6.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}: at least 1 is needed.")
    sigmas = torch.linspace(1 - 1 / timesteps, 0, steps + 1, dtype=torch.float64)
    return (shift * sigmas / (1 + (shift - 1) * sigmas)).float()


@torch.no_grad()
def sample_flow_dpm_solver(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """Integrate from sigmas[0] to sigmas[-1].

    model(x, sigma (B,), **extra_args) -> the clean latent it believes in, like x (B, ...).
    sigmas: 1-D, descending, of a flow x = (1 - sigma) * clean + sigma * noise. callback gets
    {"x", "i", "sigma", "sigma_hat", "denoised"} after each model call. disable: ignored, k-diffusion's signature.

    The half log signal-to-noise ratio is lambda = ln((1 - sigma) / sigma). Second order (midpoint) but for the first
    step, the second when sampling starts at pure noise (lambda has no finite value there), and a step to sigma 0.
    Source: arXiv 2211.01095, algorithm 2 in data prediction; arXiv 2410.10629, section 4.
    """
    extra_args = extra_args or {}
    levels = sigmas.double().tolist()
    ones = x.new_ones([x.shape[0]])
    previous = None
    for i, (sigma, target) in enumerate(zip(levels, levels[1:])):
        denoised = model(x, sigmas[i] * ones, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        guess = denoised
        if i > 0 and target > 0 and levels[i - 1] < 1:
            ratio = (_lambda(target) - _lambda(sigma)) / (_lambda(sigma) - _lambda(levels[i - 1]))
            guess = denoised + 0.5 * ratio * (denoised - previous)
        # alpha_t - alpha_s * sigma_t / sigma_s = 1 - sigma_t / sigma_s for a flow, so no exponentials are left.
        x = target / sigma * x + (1 - target / sigma) * guess
        previous = denoised
    return x


def _lambda(sigma: float) -> float:
    return torch.logit(torch.tensor(1 - sigma, dtype=torch.float64)).item()


def sprint_sigmas(steps: int) -> torch.Tensor:
    """Noise levels that Sprint is sampled with, (steps + 1,) in fp32: 1, 0.78271, 0 for two steps.

    Sprint walks along angles s from pi / 2 to 0, where x = cos(s) * clean + sin(s) * noise; scaled to a flow
    x = (1 - sigma) * clean + sigma * noise that is sigma = sin(s) / (sin(s) + cos(s)).
    Raises ValueError below 1 step. Source: arXiv 2503.09641; the angles are those of diffusers' SCMScheduler.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}: at least 1 is needed.")
    angles = torch.linspace(SPRINT_START, 0, steps + 1, dtype=torch.float64)
    if steps == 2:
        angles[1] = SPRINT_MIDDLE
    sigmas = angles.sin() / (angles.sin() + angles.cos())
    sigmas[0] = 1.0
    return sigmas.float()


@torch.no_grad()
def sample_scm(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None):
    """Consistency sampling: each step goes to the clean latent, and back up to the next level with new noise.

    Arguments as for `sample_flow_dpm_solver`. noise_sampler(sigma, next_sigma): standard normal noise like x; without it
    noise on the CPU from the seed in extra_args, so that every device gives the same.
    (Sprint's own form, in which latents have a standard deviation of 0.5 and the network a rescaled input, is the same
    but for factors that cancel.)
    """
    extra_args = extra_args or {}
    if noise_sampler is None:
        # Not the seed itself, with which the caller will have drawn the first noise.
        generator = torch.Generator().manual_seed(((extra_args.get("seed") or 0) + 1) % 2**64)

        def noise_sampler(sigma, next_sigma):
            return torch.randn(x.shape, generator=generator).to(x)

    ones = x.new_ones([x.shape[0]])
    for i, (sigma, target) in enumerate(zip(sigmas, sigmas[1:])):
        denoised = model(x, sigma * ones, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised})
        x = denoised if target == 0 else (1 - target) * denoised + target * noise_sampler(sigma, target)
    return x
