"""The transformer of SANA-Video 2B and LongSANA: Sana's, with a rotary position code in its linear attention and a convolution
over time in its feed-forward network.

Module names are those of diffusers' SanaVideoTransformer3DModel; the 1x1 convolutions are Linear layers, as in Sana's own.
Shapes as in video_layers.py. Source: arXiv 2509.24695.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from ..kernels.products import fastest
from ..kernels.rotary_attention import State, read_state, state_of
from .transformer import LINEAR_EPS, SELF_NORM_EPS, Attention, CrossAttention, GLUMBConv, sdpa
from .video_config import SanaVideoParams
from .video_layers import VideoNetwork, added, angles, modulated


class Past(NamedTuple):
    """What a block needs of the frames before the ones at hand, however many they are."""

    state: State         # of its self-attention
    frame: torch.Tensor  # (B, 1, h * w, D), the last one as it went into the convolution over time

    def then(self, later: Past) -> Past:
        """Of these frames and the ones that follow."""
        return Past(self.state + later.state, later.frame)


class RotaryLinearAttention(Attention):
    """ReLU linear attention over all tokens of the clip, and of the frames before it."""

    def __init__(self, params, **kw):
        super().__init__(params, params.num_attention_heads, params.attention_head_dim, False, SELF_NORM_EPS, **kw)

    def forward(self, x, cos, sin, past: State | None = None):
        """-> (B, N, D), and the State of x alone."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in (self.queries(x), *self.keys_values(x)))
        state = state_of(k, v, cos, sin)
        out = read_state(q, state if past is None else past + state, cos, sin, LINEAR_EPS)
        return self.to_out[0](out.flatten(2)), state


class GLUMBTempConv(GLUMBConv):
    """Sana's feed-forward network on each frame, and behind it a convolution over three frames, added to its own input."""

    def __init__(self, params, *, device, dtype, operations):
        super().__init__(params, device=device, dtype=dtype, operations=operations)
        self.conv_temp = operations.Conv2d(params.width, params.width, (3, 1), padding=(1, 0), bias=False, device=device, dtype=dtype)

    def forward(self, x, frames, height, width, past=None):
        """past (B, 1, h * w, D): the frame before the first. -> (B, N, D), and the last frame in past's form."""
        B = x.shape[0]
        x = super().forward(x.reshape(B * frames, height * width, -1), height, width).unflatten(0, (B, frames))
        before = x if past is None else torch.cat([past.to(x), x], dim=1)
        around = self.conv_temp(before.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)[:, -frames:]
        return (x + around).flatten(1, 2), x[:, -1:].clone()  # a view would keep all frames


class SanaVideoBlock(nn.Module):
    def __init__(self, params, *, device, dtype, operations):
        super().__init__()
        kw = dict(device=device, dtype=dtype, operations=operations)
        self.attn1 = RotaryLinearAttention(params, **kw)
        self.attn2 = CrossAttention(params, **kw)
        self.ff = GLUMBTempConv(params, **kw)
        self.scale_shift_table = nn.Parameter(torch.empty(6, params.width, device=device, dtype=dtype))

    def forward(self, x, context, modulation, mask, size, turns, attention=sdpa, pair=None, past: Past | None = None):
        """x (B, N, D), context (B, T, D), modulation (B, G, 6, D), mask (B, 1, 1, T) or None, size (F, h, w), turns: cosines and
        sines, pair: context's keys and values, if at hand -> (B, N, D), and the Past of these frames alone."""
        table = self.scale_shift_table.to(device=x.device, dtype=x.dtype)
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (table + modulation).unsqueeze(-2).unbind(2)
        change, state = self.attn1(modulated(x, shift_a, scale_a), *turns, past and past.state)
        x = added(x, gate_a, change)
        x = x + self.attn2(x, context, mask, attention, pair)
        change, frame = self.ff(modulated(x, shift_f, scale_f), *size, past and past.frame)
        return added(x, gate_f, change), Past(state, frame)


class SanaVideoTransformer(VideoNetwork):
    """Predicts the flow velocity (noise minus clean latent) of a noisy clip.

    device, dtype, operations: as for SanaTransformer, of which namespace Conv3d is used too. Nothing here reads or initialises a
    weight; scale_shift_table is uninitialised memory until a state dict, or training, fills it.
    """

    def __init__(self, params: SanaVideoParams, *, device=None, dtype=None, operations=torch.nn):
        super().__init__(params, device=device, dtype=dtype, operations=operations)
        kw = dict(device=device, dtype=dtype, operations=fastest(operations))
        self.transformer_blocks = nn.ModuleList([SanaVideoBlock(params, **kw) for _ in range(params.num_layers)])

    def forward(self, x, timestep, context, attention_mask=None, *, text=None, attention=sdpa, run_block=None, past=None,
                keep=None, first_frame=0):
        """Velocity at x.

        x (B, in_channels, F, H, W): normalised latent plus noise; H and W multiples of patch_size.
        timestep (B,): 1000 sigma, cut to a whole number; (B, F) or (B, N): one for each latent frame or each token, 0 for those
        that are given clean.
        context, attention_mask, text, attention, run_block: as for SanaTransformer; modulation is (B, G, 6, D) here.
        past: a Past for each block, of the frames before these, the first of which is number first_frame of the clip. keep: a
        list to which each block adds the Past of these frames alone.
        Returns (B, out_channels, F, H, W) in x's dtype. Raises ValueError for sides or times that do not fit.
        """
        p = self.params.patch_size
        size = (x.shape[2], x.shape[3] // p, x.shape[4] // p)
        x, modulation, times = self.embed(x, timestep)
        turns = angles(*size, self.params.attention_head_dim, first_frame, x.device)
        text = self.embed_text(context.to(x.dtype), attention_mask) if text is None else text
        context = text.context

        for i, block in enumerate(self.transformer_blocks):
            def call(x, context, modulation, i=i, block=block):
                pair = text.pairs[i] if text.pairs and context is text.context else None  # run_block may change the text
                x, own = block(x, context, modulation, text.mask, size, turns, attention, pair, past and past[i])
                if keep is not None:
                    keep.append(own)
                return x, context
            x, context = call(x, context, modulation) if run_block is None else run_block(i, call, x, context, modulation)
        return self.unpatched(x, times, *size)
