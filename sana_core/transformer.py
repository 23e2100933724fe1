"""The Sana transformer: linear self-attention, masked cross-attention to the text, convolutional feed-forward.

One class for Sana 0.6B and 1.6B (512 px to 4K), Sana 1.5 (query-key norm) and Sana Sprint (guidance as an input).
Module names are those of diffusers' SanaTransformer2DModel; the 1x1 convolutions of the feed-forward network are
Linear layers on tokens. Shapes: B batch, N = H*W tokens, T text tokens, D width.
Source: arXiv 2410.10629 (Sana), 2501.18427 (Sana 1.5), 2503.09641 (Sprint).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels.glumbconv import gated_depthwise, gating
from ..kernels.linear_attention import relu_linear_attention
from ..kernels.products import fastest
from .config import SanaParams

FP16_MAX = 65504.0
MASKED = -10000.0  # finite, so that an empty prompt's row is uniform and not NaN
# The epsilons of the authors' code, with which the models were trained; diffusers has 1e-15 and 1e-5 for both norms.
LINEAR_EPS, SELF_NORM_EPS, CROSS_NORM_EPS = 1e-8, 1e-5, 1e-6


def sdpa(q, k, v, heads, mask=None):
    """Softmax attention, q (B, N, D), k and v (B, T, D), additive mask (B, 1, 1, T) -> (B, N, D)."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def linear_attention(q, k, v, heads):
    """ReLU linear attention, q, k and v (B, N, D) -> (B, N, D)."""
    return relu_linear_attention(*(t.unflatten(-1, (heads, -1)) for t in (q, k, v)), LINEAR_EPS).flatten(2)


def sinusoid(t, channels=256, max_period=10000.0):
    """t (B,) -> (B, channels) in fp32: cosines first, then sines."""
    half = channels // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(max_period) / half))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def whole(timestep):
    """Timesteps (B,) of 0 to 1000 cut to whole numbers, as training drew them and as every reference feeds them, in fp32. One
    that is whole but for the rounding of its sigma stays."""
    return torch.floor(timestep.float() + 1e-3)


def position_code(height, width, channels, base, interpolation_scale, device=None):
    """Sine-cosine code of the 2K and 4K models -> (height, width, channels) in fp32.

    Positions always span [0, base / interpolation_scale), whatever the size: base is the side, in tokens, that the
    model was trained at. The first half of the channels tells the column, the second the row; each half is sines,
    then cosines.
    """
    quarter = channels // 4
    # float64 as in the reference: at 4K the angles reach 64, where fp32 frequencies would already differ.
    omega = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64, device=device) / quarter)

    def axis(length):
        position = torch.arange(length, dtype=torch.float64, device=device) * (base / length / interpolation_scale)
        angles = position[:, None] * omega
        return torch.cat([angles.sin(), angles.cos()], dim=-1).float()

    columns = axis(width)[None].expand(height, -1, -1)
    rows = axis(height)[:, None].expand(-1, width, -1)
    return torch.cat([columns, rows], dim=-1)


class Text(NamedTuple):
    """A text as the blocks of one network read it; B texts, T tokens, D width. It holds as long as text and weights do."""

    context: torch.Tensor       # (B, T, D), embedded
    mask: torch.Tensor | None   # additive (B, 1, 1, T), or None: all count
    pairs: tuple = ()           # keys and values (B, T, D) of each block; empty: each block computes its own


def drop_padding(context, mask):
    """Cut the text tokens that no sample attends to, (B, T, C) and (B, T) -> (B, T', C) and (B, T'), or None in place of a
    mask that keeps all. Exact, as such a token's weight is exactly zero, and a tenth of a CPU's step at 512 px."""
    used = mask.bool().any(dim=0)
    if used.any():
        context, mask = context[:, used], mask[:, used]
    return context, None if mask.bool().all() else mask


def attended(mask):
    """Which text tokens count, where that saves work: additive mask (B, 1, 1, T) -> (B, T) in bool, or None for all.

    In a batch of prompts of different length (with CFG, the prompt and an empty one) drop_padding leaves the shorter
    ones' padding. A sample that attends to nothing takes the mean of all its tokens: then they all count.
    """
    used = mask[:, 0, 0] > MASKED / 2  # not == 0: a weight of exp(-5000) is zero too
    return None if used.all() or not used.any(dim=1).all() else used


def readable(mask):
    """Whether one may look at what is in a mask at every step: it would make a GPU wait, and a compiled graph depend on the
    prompt."""
    return mask is not None and mask.device.type == "cpu" and not torch.compiler.is_compiling()


def spread(tokens, used):
    """tokens (M, D) -> (B, T, D): to the M places where used (B, T) is True, zeros elsewhere."""
    out = tokens.new_zeros(*used.shape, tokens.shape[-1])
    out[used] = tokens
    return out


def modulate(x, shift, scale):
    """LayerNorm without weights, then * (1 + scale) + shift. x (B, N, D), shift and scale (B, 1, D)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


class PatchEmbed(nn.Module):
    """Latent (B, C, H, W) -> tokens (B, N, D)."""

    def __init__(self, params, *, device, dtype, operations):
        super().__init__()
        self.params = params
        p = params.patch_size
        self.proj = operations.Conv2d(params.in_channels, params.width, p, stride=p, device=device, dtype=dtype)

    def forward(self, x, positions=True):
        x = self.proj(x)
        height, width = x.shape[-2:]
        # Contiguous tokens: every later layer works along D.
        x = x.flatten(2).transpose(1, 2).contiguous()
        p = self.params
        if positions and p.interpolation_scale is not None:
            code = position_code(height, width, p.width, p.sample_size // p.patch_size, p.interpolation_scale, x.device)
            x = x + code.flatten(0, 1).to(x.dtype)
        return x


class MLPEmbedder(nn.Module):
    """Linear, activation, Linear."""

    def __init__(self, in_features, width, activation, *, device, dtype, operations):
        super().__init__()
        self.activation = activation
        self.linear_1 = operations.Linear(in_features, width, device=device, dtype=dtype)
        self.linear_2 = operations.Linear(width, width, device=device, dtype=dtype)

    def forward(self, x):
        return self.linear_2(self.activation(self.linear_1(x)))


def gelu_tanh(x):
    return F.gelu(x, approximate="tanh")


class TimeEmbed(nn.Module):
    """Timestep, and Sprint's guidance, -> (modulation (B, 6, D), embedding (B, D))."""

    def __init__(self, params, *, device, dtype, operations):
        super().__init__()
        D, kw = params.width, dict(device=device, dtype=dtype, operations=operations)
        self.guidance_embeds_scale = params.guidance_embeds_scale
        if params.guidance_embeds:
            self.timestep_embedder = MLPEmbedder(256, D, F.silu, **kw)
            self.guidance_embedder = MLPEmbedder(256, D, F.silu, **kw)
        else:  # one module deeper: the released files' names
            self.emb = nn.Module()
            self.emb.timestep_embedder = MLPEmbedder(256, D, F.silu, **kw)
        self.guidance_embeds = params.guidance_embeds
        self.linear = operations.Linear(D, 6 * D, device=device, dtype=dtype)

    def forward(self, timestep, guidance, dtype):
        # Sprint's timesteps lie in [0, 1]: the sinusoid has to see them in fp32.
        if self.guidance_embeds:
            if guidance is None:
                raise ValueError("This is a Sana Sprint model: it needs `guidance`, (B,), 4.5 as a rule.")
            emb = self.timestep_embedder(sinusoid(timestep).to(dtype))
            emb = emb + self.guidance_embedder(sinusoid(guidance.float() * self.guidance_embeds_scale).to(dtype))
        else:
            emb = self.emb.timestep_embedder(sinusoid(timestep).to(dtype))
        return self.linear(F.silu(emb)).unflatten(-1, (6, -1)), emb


class Attention(nn.Module):
    """The projections and query-key norm that linear and softmax attention share."""

    def __init__(self, params, heads, head_dim, bias, norm_eps, *, device, dtype, operations):
        super().__init__()
        D, inner, kw = params.width, heads * head_dim, dict(device=device, dtype=dtype)
        self.heads = heads
        self.to_q = operations.Linear(D, inner, bias=bias, **kw)
        self.to_k = operations.Linear(D, inner, bias=bias, **kw)
        self.to_v = operations.Linear(D, inner, bias=bias, **kw)
        self.norm_q = operations.RMSNorm(inner, eps=norm_eps, **kw) if params.qk_norm else nn.Identity()
        self.norm_k = operations.RMSNorm(inner, eps=norm_eps, **kw) if params.qk_norm else nn.Identity()
        self.to_out = nn.ModuleList([operations.Linear(inner, D, **kw)])

    def queries(self, x):
        return self.norm_q(self.to_q(x))

    def keys_values(self, context):
        return self.norm_k(self.to_k(context)), self.to_v(context)


class SelfAttention(Attention):
    """ReLU linear attention over the picture's tokens."""

    def __init__(self, params, **kw):
        super().__init__(params, params.num_attention_heads, params.attention_head_dim, False, SELF_NORM_EPS, **kw)
        self.clamp_fp16 = params.clamp_fp16

    def forward(self, x, attention=linear_attention):
        x = self.to_out[0](attention(self.queries(x), *self.keys_values(x), self.heads))
        # The fp16-trained checkpoints reach +-1e6 here and learned with the clip, so it stays in every dtype.
        return x.clamp(-FP16_MAX, FP16_MAX) if self.clamp_fp16 else x


class CrossAttention(Attention):
    """Softmax attention from the picture to the text."""

    def __init__(self, params, **kw):
        super().__init__(params, params.num_cross_attention_heads, params.cross_attention_head_dim, True, CROSS_NORM_EPS, **kw)

    def keys_values(self, context, mask=None):
        used = attended(mask) if readable(mask) else None
        if used is None:
            return super().keys_values(context)
        return tuple(spread(tokens, used) for tokens in super().keys_values(context[used]))

    def forward(self, x, context, mask, attention, pair=None):
        k, v = self.keys_values(context, mask) if pair is None else pair
        return self.to_out[0](attention(self.queries(x), k, v, self.heads, mask))


class GLUMBConv(nn.Module):
    """Feed-forward network with a depthwise 3x3 convolution between its linear layers."""

    def __init__(self, params, *, device, dtype, operations):
        super().__init__()
        D, hidden, kw = params.width, params.hidden, dict(device=device, dtype=dtype)
        self.conv_inverted = operations.Linear(D, 2 * hidden, **kw)
        self.conv_depth = gating(operations.Conv2d)(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, **kw)
        self.conv_point = operations.Linear(hidden, D, bias=False, **kw)

    def forward(self, x, height, width):
        return self.conv_point(gated_depthwise(self.conv_inverted(x), self.conv_depth, height, width))


class SanaBlock(nn.Module):
    def __init__(self, params, *, device, dtype, operations):
        super().__init__()
        kw = dict(device=device, dtype=dtype, operations=operations)
        self.attn1 = SelfAttention(params, **kw)
        self.attn2 = CrossAttention(params, **kw)
        self.ff = GLUMBConv(params, **kw)
        self.scale_shift_table = nn.Parameter(torch.empty(6, params.width, device=device, dtype=dtype))

    def forward(self, x, context, modulation, mask, height, width, attention=sdpa, self_attention=linear_attention, pair=None):
        """x (B, N, D), context (B, T, D), modulation (B, 6, D), mask (B, 1, 1, T) or None, pair: context's keys and values, if
        at hand -> (B, N, D)."""
        table = self.scale_shift_table.to(device=x.device, dtype=x.dtype)
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = (table + modulation).chunk(6, dim=1)
        x = torch.addcmul(x, gate_a, self.attn1(modulate(x, shift_a, scale_a), self_attention))
        x = x + self.attn2(x, context, mask, attention, pair)
        return torch.addcmul(x, gate_f, self.ff(modulate(x, shift_f, scale_f), height, width))


class ReadsText(nn.Module):
    """What every network of Sana's does with a text, by its caption_projection, caption_norm and transformer_blocks."""

    trims: bool | None = None  # embed_text's `trim` where it is not given

    def embed_text(self, context, attention_mask=None, trim=None) -> Text:
        """SanaTransformer.forward's arguments, context in the dtype to compute in -> Text without pairs.

        trim: whether padding is left out, for which the mask is looked at; None: as self.trims says; None again: where that
        costs nothing.
        """
        trim = self.trims if trim is None else trim
        if readable(attention_mask) if trim is None else trim and attention_mask is not None:
            context, attention_mask = drop_padding(context, attention_mask)
        context = self.caption_norm(self.caption_projection(context))
        mask = None
        if attention_mask is not None:
            mask = ((1 - attention_mask.to(context.dtype)) * MASKED)[:, None, None]
        return Text(context, mask)

    def with_pairs(self, text: Text) -> Text:
        """The same text with all blocks' keys and values, for the steps of one sampling to share."""
        return text._replace(pairs=tuple(block.attn2.keys_values(text.context, text.mask) for block in self.transformer_blocks))


class SanaInputs(ReadsText):
    """What the transformer and its ControlNet have before their blocks: the embeddings of latent, time and text."""

    def __init__(self, params: SanaParams, *, device=None, dtype=None, operations=torch.nn):
        super().__init__()
        self.params = params
        kw = dict(device=device, dtype=dtype, operations=fastest(operations))
        self.patch_embed = PatchEmbed(params, **kw)
        self.time_embed = TimeEmbed(params, **kw)
        self.caption_projection = MLPEmbedder(params.caption_channels, params.width, gelu_tanh, **kw)
        self.caption_norm = operations.RMSNorm(params.width, eps=1e-5, device=device, dtype=dtype)

    def embed(self, x, timestep, guidance=None):
        """SanaTransformer.forward's arguments -> x (B, N, D), modulation (B, 6, D), embedding of the time (B, D)."""
        x = self.patch_embed(x)
        if self.params.timestep_multiplier == 1000:  # Sprint and its teachers were trained on fractions
            timestep = whole(timestep)
        return x, *self.time_embed(timestep, guidance, x.dtype)


class SanaTransformer(SanaInputs):
    """Predicts the flow velocity (noise minus clean latent) of a noisy latent.

    device, dtype: where and as what the weights are made. operations: namespace of Linear, Conv2d and RMSNorm,
    torch.nn or a host's. Nothing here reads or initialises a weight, so the meta device and lazily loaded layers
    work; scale_shift_table is uninitialised memory until a state dict, or training, fills it.
    """

    def __init__(self, params: SanaParams, *, device=None, dtype=None, operations=torch.nn):
        super().__init__(params, device=device, dtype=dtype, operations=operations)
        kw = dict(device=device, dtype=dtype, operations=fastest(operations))
        D = params.width
        self.transformer_blocks = nn.ModuleList([SanaBlock(params, **kw) for _ in range(params.num_layers)])
        self.scale_shift_table = nn.Parameter(torch.empty(2, D, device=device, dtype=dtype))
        self.proj_out = operations.Linear(D, params.patch_size**2 * params.out_channels, device=device, dtype=dtype)

    def forward(self, x, timestep, context, attention_mask=None, guidance=None, *, text=None, attention=sdpa,
                self_attention={}, run_block=None):
        """Velocity at x.

        x (B, in_channels, H, W): latent times 0.41407 plus noise; H and W multiples of patch_size, any shape.
        timestep (B,): sigma * params.timestep_multiplier (Sprint: sigma itself); cut to a whole number where the
        multiplier is 1000.
        context (B, T, caption_channels): states of the text encoder. attention_mask (B, T): 1 for a token, 0 for
        padding; None keeps all. guidance (B,): guidance scale as people say it (4.5); Sprint only, unused elsewhere.
        text: Text of context and attention_mask from this network as it is now, instead of computing it.
        attention(q, k, v, heads, mask): replaces sdpa in cross-attention.
        self_attention {i: call(q, k, v, heads) -> (B, N, D)}: replaces linear_attention in block i.
        run_block(i, call, x, context, modulation) -> x, context: stands around block i and runs it by
        call(x, context, modulation) -> x, context; x (B, N, D), context (B, T, D), modulation (B, 6, D).
        Returns (B, out_channels, H, W) in x's dtype. Raises ValueError for a Sprint model without guidance.
        """
        p = self.params.patch_size
        height, width = x.shape[-2] // p, x.shape[-1] // p

        x, modulation, embedding = self.embed(x, timestep, guidance)
        text = self.embed_text(context.to(x.dtype), attention_mask) if text is None else text
        context = text.context

        for i, block in enumerate(self.transformer_blocks):
            def call(x, context, modulation, i=i, block=block, own=self_attention.get(i, linear_attention)):
                pair = text.pairs[i] if text.pairs and context is text.context else None  # run_block may change the text
                return block(x, context, modulation, text.mask, height, width, attention, own, pair), context
            x, context = call(x, context, modulation) if run_block is None else run_block(i, call, x, context, modulation)

        table = self.scale_shift_table.to(device=x.device, dtype=x.dtype)
        shift, scale = (table + embedding[:, None]).chunk(2, dim=1)
        x = self.proj_out(modulate(x, shift, scale))
        x = x.unflatten(1, (height, width)).unflatten(-1, (p, p, -1))  # (B, h, w, p, p, C)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
