"""Sana's objective: flow matching with logit-normal noise levels, as NVlabs trains. Source: facts/training.md 1.1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

LEVELS = 1000  # of the authors' table


@dataclass(frozen=True)
class SanaFlow:
    """x = (1 - sigma) * latent + sigma * noise, and the network names noise - latent; the loss is the mean square, unweighted.

    shift: timestep shift of the variant. logit_mean, logit_std: of u = sigmoid(normal), a share of the schedule. whole_timesteps:
    take the level of the authors' table at floor(1000 u), which ends at 0.999 before the shift, and not u itself. The network
    gets sigma * multiplier, not rounded: 1000 sigma as a rule, which SanaTransformer itself cuts to a whole number as NVlabs' loop
    does (up to 1 below 1000 sigma, x being of the exact sigma), and sigma for a Sprint teacher (SanaParams.timestep_multiplier).
    caption_dropout: share of rows that get the empty prompt's states, for guidance. empty_mask: "caption" shows as many of them
    as the row's own caption had tokens, as NVlabs trains; "own" shows the empty prompt's tokens alone, as pipelines sample.
    """

    shift: float = 3.0
    logit_mean: float = 0.0
    logit_std: float = 1.0
    whole_timesteps: bool = True
    multiplier: float = 1000.0
    caption_dropout: float = 0.1
    empty_mask: str = "caption"

    def levels(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """(count,) sigmas in fp32."""
        u = torch.sigmoid(self.logit_mean + self.logit_std * torch.randn(count, generator=generator, dtype=torch.float64))
        return self.shifted((u * LEVELS).floor().clamp(max=LEVELS - 1) / LEVELS if self.whole_timesteps else u)

    def shifted(self, share: torch.Tensor) -> torch.Tensor:
        return (self.shift * share / (1 + (self.shift - 1) * share)).float()

    def losses(self, network, batch: dict, generator: torch.Generator) -> torch.Tensor:
        """(B,): batch as objectives get it: latents (B, C, h, w) scaled, states (B, T, D), mask (B, T), null_states and null_mask
        of the empty prompt; control (B, C, h, w) is handed on. Raises ValueError where the empty prompt's states are too few."""
        count = len(batch["latents"])
        sigma = self.levels(count, generator)
        dropped = torch.rand(count, generator=generator) < self.caption_dropout
        states, mask = with_empty(batch, dropped, self.empty_mask) if dropped.any() else (batch["states"], batch["mask"])
        return self._losses(network, batch, states, mask, sigma, generator)

    def losses_at(self, network, batch: dict, level: float, generator: torch.Generator) -> torch.Tensor:
        """(B,) at one noise level, 0 to 1 of the schedule before the shift; captions are kept."""
        sigma = self.shifted(torch.full((len(batch["latents"]),), float(level), dtype=torch.float64))
        return self._losses(network, batch, batch["states"], batch["mask"], sigma, generator)

    def _losses(self, network, batch, states, mask, sigma, generator):
        latents = batch["latents"].float()
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        sigma = sigma.to(latents.device)
        x = torch.lerp(latents, noise, sigma[:, None, None, None])
        extra = {"control": batch["control"]} if "control" in batch else {}
        v = network(x, sigma * self.multiplier, states, mask, **extra)
        return F.mse_loss(v.float(), noise - latents, reduction="none").mean(dim=(1, 2, 3))


def with_empty(batch: dict, dropped: torch.Tensor, empty_mask: str) -> tuple[torch.Tensor, torch.Tensor]:
    """States (B, T, D) and mask (B, T) of a batch, in which the rows of `dropped` (B,) hold the empty prompt; T becomes that of
    the longer one, its padding not counted. Raises ValueError for a caption that is longer than the empty prompt's states, whose
    mask they should have, and for states of padding that were left out."""
    states, mask, null, null_mask = (batch[name] for name in ("states", "mask", "null_states", "null_mask"))
    if empty_mask == "own":
        used = null_mask.shape[1] if null_mask.is_meta else int(null_mask[0].nonzero().max()) + 1
        null, null_mask = null[:, :used], null_mask[:, :used]
    elif null.shape[1] < states.shape[1]:
        raise ValueError(f"The empty prompt has {null.shape[1]} states, and a caption {states.shape[1]}: under the caption's mask "
                         "it needs as many. Encode it with its padding, or set objective.empty_mask to own.")
    elif not null.is_meta and not null[:, :states.shape[1]].any(dim=-1).all():
        raise ValueError("The empty prompt's padding is zeros, and not what the text encoder makes of it: under a caption's mask "
                         "it is seen. Encode it with its padding, or set objective.empty_mask to own.")
    length = max(states.shape[1], null.shape[1] if empty_mask == "own" else 0)
    states, mask = F.pad(states, (0, 0, 0, length - states.shape[1])), F.pad(mask, (0, length - mask.shape[1]))
    null = F.pad(null[:, :length], (0, 0, 0, max(0, length - null.shape[1]))).to(states)
    dropped = dropped.to(states.device)
    if empty_mask == "own":
        own = F.pad(null_mask, (0, length - null_mask.shape[1])).to(mask)
        mask = torch.where(dropped[:, None], own, mask)
    return torch.where(dropped[:, None, None], null, states), mask
