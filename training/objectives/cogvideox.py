"""CogVideoX' objective: v-prediction with zero terminal SNR. Source: facts/training.md 2.1 and 2.2."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...cogvideo_core import schedule

IMAGE_NOISE = (-3.0, 0.5)  # mean and deviation of the log of the noise on a start picture's pixels


@dataclass(frozen=True)
class CogVideoXV:
    """The mean square of v, unweighted: the same as the authors' square of x0 weighted by 1 / (1 - alpha).

    snr_shift_scale, patch_size_t: CogVideoParams'. caption_dropout, image_dropout: shares of rows that get the empty prompt, and
    no start picture. noise_lean: above 1, noisy timesteps come oftener; 1 is the authors', evenly. last_share: of rows at the last
    timestep, pure noise, besides.
    """

    snr_shift_scale: float = 1.0
    patch_size_t: int | None = None
    caption_dropout: float = 0.1
    image_dropout: float = 0.05
    noise_lean: float = 1.0
    last_share: float = 0.0

    def timesteps(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """(count,) int64 in 0..999."""
        if self.noise_lean == 1 and not self.last_share:
            return torch.randint(schedule.TIMESTEPS, (count,), generator=generator)
        last = schedule.TIMESTEPS - 1
        at = (last * (1 - torch.rand(count, generator=generator) ** self.noise_lean)).round().long()
        return torch.where(torch.rand(count, generator=generator) < self.last_share, last, at)

    def losses(self, network, batch: dict, generator: torch.Generator) -> torch.Tensor:
        """(B,): latents (B, 16, T, h, w) scaled, states (B, L, D), null_states (1, L, D); image (B, 16, 1, h, w), the start
        picture's latent times CogVideoParams.condition_scale, for image to video."""
        count = len(batch["latents"])
        timestep = self.timesteps(count, generator)
        dropped, blind = (torch.rand(count, generator=generator) < share for share in (self.caption_dropout, self.image_dropout))
        states, null = batch["states"], batch["null_states"]
        if states.shape[1:] != null.shape[1:]:
            raise ValueError(f"Captions have {tuple(states.shape[1:])} states, the empty prompt {tuple(null.shape[1:])}: CogVideoX reads "
                             "all prompts at one length. Encode them anew.")
        states = torch.where(dropped.to(states.device)[:, None, None], null.to(states), states)
        return self._losses(network, batch, states, timestep, blind, generator)

    def losses_at(self, network, batch: dict, level: float, generator: torch.Generator) -> torch.Tensor:
        """(B,) at one timestep, `level` of 0 to 1 of the way to pure noise; captions and pictures are kept."""
        count = len(batch["latents"])
        timestep = torch.full((count,), round(level * (schedule.TIMESTEPS - 1)))
        return self._losses(network, batch, batch["states"], timestep, torch.zeros(count, dtype=torch.bool), generator)

    def _losses(self, network, batch, states, timestep, blind, generator):
        latents = filled(batch["latents"].float(), self.patch_size_t)
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        alpha = alphas(self.snr_shift_scale)[timestep].to(latents.device)[:, None, None, None, None]
        x = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        v = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        if "image" in batch:  # at the first latent, in front of a 1.5 clip at that which is repeated, and nowhere else
            image = batch["image"].float() * ~blind.to(latents.device)[:, None, None, None, None]
            x = torch.cat([x, F.pad(image, (0, 0, 0, 0, 0, latents.shape[2] - 1))], dim=1)
        got = network(x, timestep.to(latents.device), states)
        return F.mse_loss(got.float(), v, reduction="none").mean(dim=(1, 2, 3, 4))


def filled(latents: torch.Tensor, patch_size_t: int | None) -> torch.Tensor:
    """(B, C, T, h, w) with the first latent repeated in front where the 1.5 models' patches in time ask for more, as samplers have
    it; the noise of what is repeated is its own, and it counts in the loss."""
    front = -latents.shape[2] % (patch_size_t or 1)
    return F.pad(latents, (0, 0, 0, 0, front, 0), mode="replicate") if front else latents


@functools.cache
def alphas(snr_shift_scale: float) -> torch.Tensor:
    """(1000,) in fp32."""
    return schedule.alphas_cumprod(snr_shift_scale).float()


def sample_posterior(mean: torch.Tensor, logvar: torch.Tensor, scale: float, generator: torch.Generator) -> torch.Tensor:
    """A latent of the autoencoder's moments, times its scale: new ones each epoch."""
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    return (mean + noise * (0.5 * logvar.clamp(-30, 20)).exp()) * scale


def noisy_picture(pixels: torch.Tensor, generator: torch.Generator, noise=IMAGE_NOISE) -> torch.Tensor:
    """A start picture (C, 1, H, W) in [-1, 1] with the noise that the authors put on it before they encode it, of one strength a
    picture: exp of a normal with the mean and deviation of `noise`."""
    mean, deviation = noise
    strength = (mean + deviation * torch.randn((), generator=generator)).exp()
    return pixels + strength * torch.randn(pixels.shape, generator=generator).to(pixels)
