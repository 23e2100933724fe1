"""SANA-Video's objective: Sana's flow matching on clips, of which some begin with a frame that is given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .sana import SanaFlow


@dataclass(frozen=True)
class SanaVideoFlow(SanaFlow):
    """picture_share: share of rows whose first latent frame is clean and at time 0, as image to video has it; it does not count in
    their loss. 1: of all rows, at fixed noise levels too. The rest as for SanaFlow; the released models were trained with a
    shift of 3, and are sampled with 8 or 12.
    """

    picture_share: float = 0.0

    def losses(self, network, batch: dict, generator: torch.Generator) -> torch.Tensor:
        """(B,): batch as for SanaFlow, but latents (B, C, F, h, w)."""
        given = torch.rand(len(batch["latents"]), generator=generator) < self.picture_share
        return super().losses(network, batch | {"given": given}, generator)

    def _losses(self, network, batch, states, mask, sigma, generator):
        latents = batch["latents"].float()
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        given = batch.get("given", torch.full((len(latents),), self.picture_share >= 1)).to(latents.device)
        drawn = torch.ones(latents.shape[0], latents.shape[2], device=latents.device)  # (B, F)
        drawn[given, 0] = 0
        level = sigma.to(latents.device)[:, None] * drawn
        x = torch.lerp(latents, noise, level[:, None, :, None, None])
        v = network(x, level * self.multiplier, states, mask)
        errors = F.mse_loss(v.float(), noise - latents, reduction="none").mean(dim=(1, 3, 4))
        return (errors * drawn).sum(1) / drawn.sum(1)
