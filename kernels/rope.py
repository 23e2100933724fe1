"""Rotary position code on interleaved channel pairs."""

from __future__ import annotations

import torch

from . import dispatch, register


def rotate_pairs(x, cos, sin):
    """Turn each pair of neighbouring channels by its token's angle.

    x (B, N, H, Dh); cos and sin (N, Dh / 2) in fp32. Returns (B, N, H, Dh) in x's dtype; computed in fp32.
    Without gradients x may be overwritten.
    """
    dim = x.shape[-1]
    if x.stride(-1) == 1 and dim >= 16 and not dim & (dim - 1) and cos.is_contiguous() and sin.is_contiguous():
        if cos.dtype == sin.dtype == torch.float32 and dispatch.fusible(x, cos, sin):
            return dispatch.run("rotate_pairs", x, cos, sin)
    return eager(x, cos, sin)


def eager(x, cos, sin):
    cos, sin = cos[:, None], sin[:, None]
    if x.device.type in ("cpu", "cuda") and not (x.requires_grad or torch.compiler.is_compiling()):
        # One pass in place: the real form below takes eight, each with a tensor of its own, unless a compiler fuses it.
        pairs = torch.view_as_complex(x.float().contiguous().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs.mul_(torch.complex(cos, sin))).flatten(-2).to(x.dtype)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


register.add_eager("rotate_pairs", eager)
