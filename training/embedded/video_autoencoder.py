"""Training of the tiny causal VAE: clips of 9 frames, 96x96, to 3x12x12 latents of 16 channels and back. What encodes these
goes for larger and longer ones as it is; what decodes is trained on both.

First single frames, which cost a ninth, then clips. Beyond redrawing the clip, the latents are asked for three things
that make them easy to generate: unit spread after the fixed scale of the CogVideoX family, a decoder that forgives
noise on them, and that colours, shape and direction can be read from them even under heavy noise.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .autoencoder import reconstruction_loss
from ...evaluation.drawn import clip_judge, clips
from ...cogvideo_core.autoencoder import CogVideoVAE
from ...cogvideo_core.config import CogVideoVAEParams

LATENT_SCALE = 0.7  # latent for the transformer = encoded * scale
LATENT = (16, 3, 12, 12)  # of a small clip
LOG_VARIANCE = -12.0  # of every latent: they are exact, and who draws them of their distribution gets them as they are
FRAME_PHASE = 0.3  # share of the schedule on single frames
FRAMES_A_STEP, CLIPS_A_STEP = 8, 2  # a single clip keeps PyTorch (2.11) from oneDNN: two take a third of the time
SQUARES = 10.0  # weight of the squared error while only the decoder is trained
NOISE = (1.0, 6.0)  # on the latents that the heads read, standard deviations

PARAMS = CogVideoVAEParams(block_out_channels=(16, 16, 32, 64), layers_per_block=1, norm_num_groups=4)


def build() -> CogVideoVAE:
    """The tiny autoencoder with random weights."""
    model = CogVideoVAE(PARAMS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("conv_y.conv.weight"):
                parameter.mul_(0.2)
            elif name.endswith("conv_y.conv.bias"):
                parameter.fill_(1.0)  # it multiplies what the norm lets through
            elif name.endswith("bias"):
                parameter.zero_()
        fix_variance(model)
    return model


@torch.no_grad()
def fix_variance(model: CogVideoVAE) -> None:
    """Make the second half of what the encoder gives LOG_VARIANCE; only the first, the means, is trained."""
    last = model.encoder.conv_out.conv
    last.weight[LATENT[0]:] = 0.0
    last.bias[LATENT[0]:] = LOG_VARIANCE


def latent(form: clips.Format) -> tuple[int, int, int, int]:
    """(channels, frames, height, width) of a clip's latent."""
    return LATENT[0], (form.frames - 1) // PARAMS.temporal_compression_ratio + 1, form.side // 8, form.side // 8


class LatentHeads(nn.Module):
    """Tells the four attributes from latents (B, 16, 3, 12, 12); used in training only."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(16, 32, 3, padding=1)
        self.out = nn.Linear(3 * 32 * 144, sum(clips.COUNTS))

    def forward(self, latents):
        mixed = F.gelu(self.mix(latents.transpose(1, 2).flatten(0, 1)))
        return self.out(mixed.unflatten(0, (-1, 3)).flatten(1)).split(clips.COUNTS, dim=1)


class Autoencoding(nn.Module):
    """Network and heads, with the loss of one step."""

    def __init__(self):
        super().__init__()
        self.model, self.heads = build(), LatentHeads()

    def loss(self, step: int, progress: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        device = self.heads.out.weight.device
        single = progress < FRAME_PHASE
        scenes = clips.sample_scenes(FRAMES_A_STEP if single else CLIPS_A_STEP, generator)
        shown = clips.draw(scenes, generator, clips.WIDE, colour_jitter=0.03, frames=1 if single else None).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            latents = (self.model.encode(shown) * LATENT_SCALE).float()
            amount = torch.rand(len(latents), 1, 1, 1, 1, generator=generator).to(device)
            noise = torch.randn(latents.shape, generator=generator).to(device)
            drawn = self.model.decode((latents + 0.3 * amount * noise) / LATENT_SCALE).float()
        loss = reconstruction_loss(*(x.transpose(1, 2).flatten(0, 1) for x in (drawn, shown)))
        mean, std = latents.mean(dim=(0, 2, 3, 4)), latents.std(dim=(0, 2, 3, 4))
        loss = loss + 0.02 * (mean.square() + (std - 1).square()).mean()
        if not single:
            sigma = NOISE[0] * (NOISE[1] / NOISE[0]) ** amount
            told = self.heads((latents + sigma * noise) / (1 + sigma**2).sqrt())
            scenes = scenes.to(device)
            loss = loss + 0.01 * sum(F.cross_entropy(logits, scenes[:, i]) for i, logits in enumerate(told))
        return loss


class Decoding(nn.Module):
    """The second half of the training: the encoder stands still, so that the transformers can already be trained on its
    latents, and the decoder learns on."""

    def __init__(self, trained: CogVideoVAE):
        super().__init__()
        self.model = build()
        self.model.load_state_dict(trained.state_dict())
        self.model.encoder.requires_grad_(False)

    def loss(self, step: int, progress: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1_000_000 + step)
        device = next(self.model.parameters()).device
        form = (clips.SMALL, clips.LARGE)[step % 2]
        scenes = clips.sample_scenes(CLIPS_A_STEP, generator)
        shown = clips.draw(scenes, generator, clips.WIDE, colour_jitter=0.02, form=form).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            with torch.no_grad():
                latents = self.model.encode(shown) * LATENT_SCALE
            amount = torch.rand(len(latents), 1, 1, 1, 1, generator=generator).to(device)
            noise = torch.randn(latents.shape, generator=generator).to(device)
            drawn = self.model.decode((latents + 0.3 * amount * noise) / LATENT_SCALE).float()
        loss = reconstruction_loss(*(x.transpose(1, 2).flatten(0, 1) for x in (drawn, shown)))
        return loss + SQUARES * F.mse_loss(drawn, shown)


@torch.no_grad()
def encode(model: CogVideoVAE, shown: torch.Tensor, batch: int = 4) -> torch.Tensor:
    """Clips (N, 3, T, H, W) -> scaled latents on the CPU, a few clips at a time."""
    device = next(model.parameters()).device
    return torch.cat([model.encode(part.to(device)).float().cpu() * LATENT_SCALE for part in shown.split(batch)])


@torch.no_grad()
def decode(model: CogVideoVAE, latents: torch.Tensor, batch: int = 4) -> torch.Tensor:
    """Scaled latents -> clips on the CPU, a few at a time."""
    device = next(model.parameters()).device
    return torch.cat([model.decode(part.to(device) / LATENT_SCALE).float().cpu() for part in latents.split(batch)])


def psnr(drawn: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """In dB, one a row, of pictures or clips in [-1, 1]; drawn is clipped first."""
    error = (drawn.clamp(-1, 1) - shown).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4 / error)


def evaluate_autoencoder(model: CogVideoVAE, count: int = 64, layout: clips.Layout = clips.WIDE, form: clips.Format = clips.SMALL):
    """(judge's share per attribute, of both colours together, and mean PSNR in dB, over held-out clips; the clips;
    their reconstructions; the spread of the scaled latents)."""
    generator = torch.Generator().manual_seed(10_000_019)
    scenes = clips.sample_scenes(count, generator, held_out=True)
    shown = clips.draw(scenes, generator, layout, form=form)
    latents = encode(model, shown)
    drawn = decode(model, latents)
    seen = clip_judge.agreement(clips.to_frames(drawn), scenes)
    figures = {k: float(v.mean()) for k, v in seen.items()}
    figures["colour+background"] = float((seen["colour"] & seen["background"]).mean())
    figures |= {"psnr": float(psnr(drawn, shown).mean()), "latent spread": float(latents.std())}
    return figures, shown, drawn


def preview_factors(model: CogVideoVAE, count: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares from a scaled latent (16,) to the mean colour, in [-1, 1], of its 8x8 pixels in the last frame
    that it holds: factors (16, 3), bias (3,)."""
    generator = torch.Generator().manual_seed(7)
    shown = clips.draw(clips.sample_scenes(count, generator), generator, clips.WIDE)
    rows = encode(model, shown).permute(0, 2, 3, 4, 1).reshape(-1, LATENT[0])
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    colours = F.avg_pool3d(shown[:, :, ::4], (1, 8, 8)).permute(0, 2, 3, 4, 1).reshape(-1, 3)
    solution = torch.linalg.lstsq(rows, colours).solution
    return solution[:-1], solution[-1]


def to_config() -> dict:
    """The config that stands in the exported file, named as in diffusers."""
    return {"_class_name": "AutoencoderKLCogVideoX", "_name": "SanaCog tiny", "act_fn": "silu",
            "block_out_channels": list(PARAMS.block_out_channels), "layers_per_block": PARAMS.layers_per_block,
            "latent_channels": PARAMS.latent_channels, "in_channels": 3, "out_channels": 3,
            "norm_num_groups": PARAMS.norm_num_groups, "norm_eps": PARAMS.norm_eps,
            "temporal_compression_ratio": PARAMS.temporal_compression_ratio, "scaling_factor": LATENT_SCALE}
