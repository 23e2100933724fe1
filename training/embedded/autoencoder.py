"""Training of the tiny DC-AE: 256x256 pictures to 8x8 latents of 32 channels and back.

Beyond redrawing the picture, the latents are asked for three things that make them easy to generate: unit spread after
the fixed scale of the Sana family, a decoder that forgives noise on them, and that colour, shape, size and place can be
read from them even under heavy noise, since a flow model decides early what it can tell early.
"""
from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ...evaluation.drawn import judge, shapes
from ...sana_core.autoencoder import AutoencoderDC, DCAEParams

LATENT_SCALE = 0.41407  # of every Sana autoencoder: latent for the transformer = encoded * scale
BATCH = 4
CROP = 128
CROP_PHASE = 0.4  # share of the schedule on crops, four times as many as pictures for the same work
SQUARES = 50.0  # of the squared error while only the decoder is trained: 0 to 10, 0.2 dB in 2,000 steps; 10 to 50, 0.02 in 900

CONFIG = {
    "_class_name": "AutoencoderDC", "in_channels": 3, "latent_channels": 32, "attention_head_dim": 32,
    "encoder_block_types": ["ResBlock"] * 5 + ["EfficientViTBlock"],
    "decoder_block_types": ["ResBlock"] * 5 + ["EfficientViTBlock"],
    "encoder_block_out_channels": [8, 8, 16, 32, 128, 128], "decoder_block_out_channels": [8, 16, 32, 64, 128, 128],
    "encoder_layers_per_block": [0, 1, 1, 1, 1, 2], "decoder_layers_per_block": [0, 1, 1, 1, 1, 2],
    "encoder_qkv_multiscales": [[], [], [], [], [], [5]], "decoder_qkv_multiscales": [[], [], [], [], [], [5]],
    "upsample_block_type": "interpolate", "downsample_block_type": "conv",
    "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu",
    "encoder_out_shortcut": True, "decoder_in_shortcut": True, "decoder_conv_act_fn": "relu",
    "scaling_factor": LATENT_SCALE,
}


def build() -> AutoencoderDC:
    """The tiny autoencoder with random weights."""
    model = AutoencoderDC(DCAEParams(**{k: v for k, v in CONFIG.items() if not k.startswith("_") and k != "decoder_norm_types"}))
    initialise(model)
    return model


def initialise(model: nn.Module) -> None:
    """The networks' own code leaves weights alone: norms start at 1, their biases and all others at 0; the rest is torch's."""
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)


class LatentHeads(nn.Module):
    """Tells the five attributes from latents (B, 32, 8, 8); used in training only."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(32, 48, 3, padding=1)
        self.out = nn.Linear(48 * 64, sum(shapes.COUNTS))

    def forward(self, latents):
        return self.out(F.gelu(self.mix(latents)).flatten(1)).split(shapes.COUNTS, dim=1)


class Autoencoding(nn.Module):
    """Network and heads, with the loss of one step."""

    def __init__(self):
        super().__init__()
        self.model, self.heads = build(), LatentHeads()
        self.to(memory_format=torch.channels_last)
        self.encode, self.decode = self.model.encode, self.model.decode

    def compile_network(self):
        self.encode, self.decode = torch.compile(self.model.encode), torch.compile(self.model.decode)

    def loss(self, step: int, progress: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        device = self.heads.out.weight.device
        crops = progress < CROP_PHASE
        scenes = shapes.sample_scenes(BATCH * 4 if crops else BATCH, generator)
        pictures = shapes.draw(scenes, generator, colour_jitter=0.03, crop=CROP if crops else None).to(device)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            latents = (self.encode(pictures) * LATENT_SCALE).float()
            noise = torch.randn(latents.shape, generator=generator).to(device)
            amount = torch.rand(len(latents), 1, 1, 1, generator=generator).to(device)
            drawn = self.decode((latents + 0.3 * amount * noise) / LATENT_SCALE).float()
        loss = reconstruction_loss(drawn, pictures)
        mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
        loss = loss + 0.02 * (mean.square() + (std - 1).square()).mean()
        if not crops:  # the flow's own noise, from 0.4 to 0.9
            sigma = 0.4 + 0.5 * amount
            told = self.heads((1 - sigma) * latents + sigma * noise)
            scenes = scenes.to(device)
            loss = loss + 0.01 * sum(F.cross_entropy(logits, scenes[:, i]) for i, logits in enumerate(told))
        return loss


class Decoding(nn.Module):
    """The second half of the training: the encoder stands still, so that the transformer can already be trained on its
    latents, and the decoder learns on, from whole pictures."""

    def __init__(self, model: AutoencoderDC):
        super().__init__()
        self.model = model
        model.encoder.requires_grad_(False)

    def loss(self, step: int, progress: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1_000_000 + step)
        device = next(self.model.parameters()).device
        pictures = shapes.draw(shapes.sample_scenes(BATCH, generator), generator, colour_jitter=0.02).to(device)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            with torch.no_grad():
                latents = self.model.encode(pictures) * LATENT_SCALE
            amount = torch.rand(len(latents), 1, 1, 1, generator=generator).to(device)
            noise = torch.randn(latents.shape, generator=generator).to(device)
            drawn = self.model.decode((latents + 0.3 * amount * noise) / LATENT_SCALE).float()
        return reconstruction_loss(drawn, pictures) + SQUARES * F.mse_loss(drawn, pictures)


def kernels(decoder: nn.Module) -> list[nn.Parameter]:
    """The weights that Muon trains: all that mix channels, but for what gives colours."""
    return [p for p in decoder.parameters() if p.dim() > 1 and p.shape[1] > 1 and p.shape[0] >= 8]


def reconstruction_loss(drawn: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    """L1 of the pixels, weighted up near outlines, plus L1 of their horizontal and vertical differences."""
    error = drawn - pictures
    change = pictures[..., 1:, 1:].sub(pictures[..., :-1, :-1]).abs().sum(dim=1, keepdim=True)
    near = F.max_pool2d(F.pad(change, (0, 1, 0, 1)), 8) > 0.05  # 8x8 cells that an outline runs through
    weight = 1 + 2 * F.interpolate(near.to(error.dtype), scale_factor=8)
    return (error.abs() * weight).mean() + error.diff(dim=3).abs().mean() + error.diff(dim=2).abs().mean()


@torch.no_grad()
def evaluate_autoencoder(model: AutoencoderDC, count: int = 128) -> tuple[dict[str, float], torch.Tensor, torch.Tensor]:
    """(judge's share per attribute, and of right shapes among the main ones, and PSNR in dB, over held-out pictures;
    the pictures; their reconstructions)."""
    generator = torch.Generator().manual_seed(10_000_019)
    scenes = shapes.sample_scenes(count, generator, held_out=True)
    pictures = shapes.draw(scenes, generator)
    device = next(model.parameters()).device
    drawn = torch.cat([model.decode(model.encode(p.to(device))).float().cpu() for p in pictures.split(16)])
    seen = {k: np.array(v) for k, v in judge.agreement(to_numpy(drawn), scenes).items()}
    figures = {k: float(v.mean()) for k, v in seen.items()}
    figures["main shape"] = float(seen["shape"][scenes[:, shapes.SHAPE].numpy() < shapes.MAIN_SHAPES].mean())
    error = (drawn.clamp(-1, 1) - pictures).square().mean()
    figures["psnr"] = float(10 * torch.log10(4 / error))
    return figures, pictures, drawn


def to_numpy(pictures: torch.Tensor) -> np.ndarray:
    """(N, 3, H, W) in [-1, 1] -> (N, H, W, 3) in [0, 1]."""
    return (pictures.clamp(-1, 1) * 0.5 + 0.5).permute(0, 2, 3, 1).float().cpu().numpy()


@torch.no_grad()
def preview_factors(model: AutoencoderDC, count: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares from a scaled latent (32,) to the mean colour, in [-1, 1], of its 32x32 pixels: factors (32, 3), bias (3,)."""
    generator = torch.Generator().manual_seed(7)
    pictures = shapes.draw(shapes.sample_scenes(count, generator), generator)
    device = next(model.parameters()).device
    latents = torch.cat([model.encode(p.to(device)).float().cpu() for p in pictures.split(16)]) * LATENT_SCALE
    rows = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    colours = F.avg_pool2d(pictures, 32).permute(0, 2, 3, 1).reshape(-1, 3)
    solution = torch.linalg.lstsq(rows, colours).solution
    return solution[:-1], solution[-1]
