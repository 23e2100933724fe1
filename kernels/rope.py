"""Rotary position code on interleaved channel pairs."""

from __future__ import annotations

import torch


def rotate_pairs(x, cos, sin):
    """Turn each pair of neighbouring channels by its token's angle.

    x (B, N, H, Dh); cos and sin (N, Dh / 2) in fp32. Returns (B, N, H, Dh) in x's dtype; computed in fp32.
    """
    cos, sin = cos[:, None], sin[:, None]
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)
