"""What the networks of SANA-Video and SANA-Video 2.0 share: tokens of a clip, their positions, and times of their own for parts
of it.

Shapes: B batch, F frames of the latent, h and w its sides in patches, N = F * h * w tokens in that order, D width.
Source: arXiv 2509.24695 (SANA-Video).
"""

from __future__ import annotations

import torch
from torch import nn

from ..kernels.products import fastest
from .transformer import MLPEmbedder, ReadsText, TimeEmbed, gelu_tanh, modulate, whole

ROPE_THETA = 10000.0


def axes(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that tell frame, row and column."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def angles(frames: int, height: int, width: int, head_dim: int, first_frame: int = 0, device=None):
    """Rotary angles of a clip's tokens -> cosines and sines, each (N, head_dim / 2) in fp32.

    Every axis counts from 0, frames from first_frame. Computed in float64, as in the references' tables.
    """
    starts = (first_frame, 0, 0)
    parts = []
    for axis, (length, channels) in enumerate(zip((frames, height, width), axes(head_dim))):
        rates = ROPE_THETA ** (-torch.arange(0, channels, 2, dtype=torch.float64, device=device) / channels)
        turns = (starts[axis] + torch.arange(length, dtype=torch.float64, device=device))[:, None] * rates
        shape = [1, 1, 1, -1]
        shape[axis] = length
        parts.append(turns.view(shape).expand(frames, height, width, -1))
    turns = torch.cat(parts, dim=-1).flatten(0, 2)
    return turns.cos().float(), turns.sin().float()


def grouped(x, groups: int):
    """Tokens (B, N, D) -> (B, groups, N / groups, D): those that share a time."""
    return x.unflatten(1, (groups, -1))


def modulated(x, shift, scale):
    """Norm and modulation of tokens (B, N, D) by shift and scale (B, G, 1, D), a time for each of G parts -> (B, N, D)."""
    return modulate(grouped(x, shift.shape[1]), shift, scale).flatten(1, 2)


def added(x, gate, change):
    """x + gate * change. x and change (B, N, D), gate (B, G, 1, D)."""
    groups = gate.shape[1]
    return torch.addcmul(grouped(x, groups), gate, grouped(change, groups)).flatten(1, 2)


class VideoNetwork(ReadsText):
    """Around the blocks of both networks: patches, times and text before them, the way back to a latent behind them.

    params has in_channels, out_channels, patch_size (of height and width; every latent frame is a patch's own), width,
    caption_channels.
    """

    def __init__(self, params, *, device=None, dtype=None, operations=torch.nn):
        super().__init__()
        self.params = params
        D, p, kw = params.width, params.patch_size, dict(device=device, dtype=dtype)
        layers = kw | dict(operations=fastest(operations))
        self.patch_embedding = operations.Conv3d(params.in_channels, D, (1, p, p), stride=(1, p, p), **kw)
        self.time_embed = TimeEmbed(params, **layers)
        self.caption_projection = MLPEmbedder(params.caption_channels, D, gelu_tanh, **layers)
        self.caption_norm = operations.RMSNorm(D, eps=1e-5, **kw)
        self.scale_shift_table = nn.Parameter(torch.empty(2, D, **kw))
        self.proj_out = operations.Linear(D, p * p * params.out_channels, **kw)

    def embed(self, x, timestep):
        """x (B, C, F, H, W), timestep (B,) or (B, G) -> tokens (B, N, D), modulation (B, G, 6, D), times (B, G, D).

        G is 1, F for a time of each frame, or N for one of each token. Raises ValueError for another number, and for a latent
        whose sides are no multiples of the patch.
        """
        p = self.params.patch_size
        if x.shape[-2] % p or x.shape[-1] % p:
            raise ValueError(f"this latent is {x.shape[-1]} x {x.shape[-2]}, and the model takes patches of {p} x {p}: both sides "
                             f"must be multiples of {p}.")
        x = self.patch_embedding(x).flatten(2).transpose(1, 2).contiguous()
        timestep = timestep if timestep.ndim == 2 else timestep[:, None]
        if x.shape[1] % timestep.shape[1]:
            raise ValueError(f"{timestep.shape[1]} times for {x.shape[1]} tokens: give one, one for each frame, or one for each "
                             "token.")
        modulation, times = self.time_embed(whole(timestep.flatten()), None, x.dtype)
        return x, *(t.unflatten(0, timestep.shape) for t in (modulation, times))

    def unpatched(self, x, times, frames: int, height: int, width: int):
        """Tokens (B, N, D) behind the last block, times (B, G, D) -> (B, C, F, H, W)."""
        p = self.params.patch_size
        table = self.scale_shift_table.to(device=x.device, dtype=x.dtype)
        shift, scale = (table + times[:, :, None]).chunk(2, dim=2)
        x = self.proj_out(modulated(x, shift, scale))
        x = x.unflatten(1, (frames, height, width)).unflatten(-1, (p, p, -1))  # (B, F, h, w, p, p, C)
        return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
