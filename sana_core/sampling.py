"""Flow-DPM-Solver++ (2M), the solver of the Sana paper, as a plain function in the manner of k-diffusion."""

from __future__ import annotations

import torch


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
