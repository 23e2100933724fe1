"""Sprint by its teacher's trajectories: what the teacher makes of a noise in many steps with guidance, the student learns to name
in one. Needs no derivative of the network and no discriminator, and far fewer steps than sCM; the teacher draws its latents
before training begins. Source: Luhman and Luhman, arXiv 2101.02388; the rows below pure noise are ours, for the later steps of a
student that takes several.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...sana_core.sampling import flow_sigmas, sample_flow_dpm_solver

HIGHEST = 0.95  # noise level of rows that do not start at 1


@dataclass(frozen=True)
class SprintTrajectories:
    """from_noise: share of rows that start at the noise that the teacher started at. lowest: noise level of the others, evenly up
    to HIGHEST: the teacher's latent under new noise."""

    from_noise: float = 0.5
    lowest: float = 0.2

    def losses(self, network, batch: dict, generator: torch.Generator) -> torch.Tensor:
        """(B,), mean square of the latent that the student names: batch as for SanaFlow, its latents the teacher's, scaled, with
        noise (B, C, h, w) and guidance (B,) of each."""
        count = len(batch["latents"])
        sigma = self.lowest + (HIGHEST - self.lowest) * torch.rand(count, generator=generator)
        first = torch.rand(count, generator=generator) < self.from_noise
        return self._losses(network, batch, torch.where(first, 1.0, sigma), first, generator)

    def losses_at(self, network, batch: dict, level: float, generator: torch.Generator) -> torch.Tensor:
        """(B,) at one noise level, 0 to 1; at 1 from the teacher's own noise."""
        sigma = torch.full((len(batch["latents"]),), float(level))
        return self._losses(network, batch, sigma, sigma == 1, generator)

    def _losses(self, network, batch, sigma, first, generator):
        latents = batch["latents"].float()
        new = torch.randn(latents.shape, generator=generator).to(latents)
        sigma, first = (t.to(latents.device) for t in (sigma, first))
        noise = torch.where(first[:, None, None, None], batch["noise"].to(latents), new)
        x = torch.lerp(latents, noise, sigma[:, None, None, None])
        v = network(x, sigma * network.params.timestep_multiplier, batch["states"], batch["mask"], batch["guidance"].to(latents))
        return F.mse_loss(x - sigma[:, None, None, None] * v.float(), latents, reduction="none").mean(dim=(1, 2, 3))


@torch.no_grad()
def drawn_by(teacher: Callable, params, noise, text, null, guidance: torch.Tensor, steps: int, shift: float) -> torch.Tensor:
    """Latents (B, C, h, w) that the teacher makes of noise (B, C, h, w) by Flow-DPM-Solver++ and guidance scales (B,).

    text, null: (states (B, T, D), mask (B, T)) of the prompts, and (1, T, D), (1, T) of the empty one. params: SanaParams.
    """
    null = [part.expand(len(noise), *part.shape[1:]) for part in null]
    scale = guidance[:, None, None, None]

    def clean(x, sigma):
        at = sigma * params.timestep_multiplier
        v = torch.lerp(teacher(x, at, *null).float(), teacher(x, at, *text).float(), scale)
        return x - sigma.view(-1, 1, 1, 1) * v
    return sample_flow_dpm_solver(clean, noise, flow_sigmas(steps, shift).to(noise))
