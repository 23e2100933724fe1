"""Pictures and clips from a network in training: text states in, latents out."""

from __future__ import annotations

import torch

from ..cogvideo_core import schedule
from ..sana_core.sampling import flow_sigmas, sample_flow_dpm_solver, sample_scm, sprint_sigmas


@torch.no_grad()
def sana(network, params, sampling, text, null, size: tuple[int, ...], seed: int, steps: int, guidance: float, device,
         control=None, first=None) -> torch.Tensor:
    """One latent (1, C, h, w), of SANA-Video (1, C, f, h, w), of a prompt, on the CPU. sampling: the config's section. text, null:
    (states (1, T, D), mask (1, T)) of the prompt and of the empty one. size: (h, w) or (f, h, w). control: latent of a condition
    picture, for a ControlNet. first: latent (1, C, 1, h, w) of the first frame, for image to video."""
    noise = torch.randn(1, params.in_channels, *size, generator=torch.Generator().manual_seed(seed)).to(device)
    (states, mask), (null_states, null_mask) = ([t.to(device) for t in pair] for pair in (text, null))
    extra = {} if control is None else {"control": control.to(device)}
    if params.guidance_embeds:
        scale = torch.full((1,), guidance, device=device)

        def clean(x, sigma, seed):  # which the sampler hands on
            return x - _beside(sigma, x) * network(x, sigma * params.timestep_multiplier, states, mask, guidance=scale)
        return sample_scm(clean, noise, sprint_sigmas(steps).to(device), {"seed": seed}).cpu()

    x, given = noise, None
    if first is not None:  # what is given takes no part in the sampler's steps, and is at time 0
        x, given = noise[:, :, 1:], first.to(device)

    def velocity(x, sigma):
        t = sigma * params.timestep_multiplier
        if given is not None:
            t = t[:, None].repeat(1, size[0])
            t[:, 0], x = 0, torch.cat([given, x], dim=2)
        v = network(x, t, states, mask, **extra).float()
        if guidance != 1:
            v = torch.lerp(network(x, t, null_states, null_mask, **extra).float(), v, guidance)
        return v if given is None else v[:, :, 1:]

    sigmas = flow_sigmas(steps, sampling.shift or params.flow_shift).to(device)
    if sampling.sampler == "flow_dpm_solver":
        x = sample_flow_dpm_solver(lambda x, sigma: x - _beside(sigma, x) * velocity(x, sigma), x, sigmas)
    else:
        for sigma, after in zip(sigmas, sigmas[1:]):
            x = x + (after - sigma) * velocity(x, sigma[None])
    return (x if given is None else torch.cat([given, x], dim=2)).cpu()


def _beside(sigma, x):
    """A number a row, to be multiplied with x."""
    return sigma.view(-1, *[1] * (x.dim() - 1))


@torch.no_grad()
def cogvideox(network, params, sampling, states, null, shape: tuple[int, int, int], seed: int, steps: int, guidance: float,
              device, image=None) -> torch.Tensor:
    """One latent (1, 16, T, h, w) of a prompt, on the CPU. states, null: (1, L, D). shape: (T, h, w). image: latent
    (1, 16, 1, h, w) of the first frame as the network is given it, for image to video."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, params.out_channels, *shape, generator=generator).to(device)
    states, null = states.to(device), null.to(device)
    beside = None
    if params.conditioning == "image":
        beside = torch.zeros_like(noise)
        if image is not None:
            beside[:, :, :1] = image.to(device)

    def v(x, timestep):
        given = x if beside is None else torch.cat([x, beside], dim=1)
        t = torch.full((1,), timestep, device=device)
        found = network(given, t, states).float()
        if guidance == 1:
            return found
        scale = schedule.guidance_wave(timestep, steps, guidance) if sampling.dynamic_guidance else guidance
        return torch.lerp(network(given, t, null).float(), found, scale)

    if sampling.sampler == "dpm":
        return schedule.dpm(v, noise, steps, lambda i: torch.randn(noise.shape, generator=generator).to(device),
                            params.snr_shift_scale).cpu()
    return schedule.ddim(v, noise, steps, params.snr_shift_scale).cpu()
