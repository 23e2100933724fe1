"""The CogVideoX transformer: text and video tokens in one sequence, full attention over both.

One class for 2B, 5B, 5B-I2V, 1.5-5B, 1.5-5B-I2V and the CogVideoX-Fun models; CogVideoParams tells them apart.
Module names are those of diffusers' CogVideoXTransformer3DModel. Shapes: B batch, L text tokens, N video tokens in
the order frame, row, column, D width. Source: arXiv 2408.06072.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels.products import fastest
from ..kernels.rope import rotate_pairs
from .config import CogVideoParams
from .positions import cropped_positions, resize_code, rope_table, sincos_code

OFS = 2.0  # the only value 1.5-5B-I2V was trained with
OUT_NORM_EPS = 1e-6  # of the last norm; as the authors' code has it, diffusers has that of the other norms


def sdpa(q, k, v, heads, mask=None):
    """Softmax attention, q, k and v (B, S, D) -> (B, S, D)."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def sinusoid(t, channels, max_period=10000.0):
    """t (B,) -> (B, channels) in fp32: cosines first, then sines."""
    half = channels // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(max_period) / half))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class PatchEmbed(nn.Module):
    """Latent (B, C, T, H, W) -> video tokens (B, N, D); text states (B, L, text_embed_dim) -> (B, L, D)."""

    def __init__(self, params, *, device, dtype, operations):
        super().__init__()
        self.params = params
        C, D, p, kw = params.in_channels, params.width, params.patch_size, dict(device=device, dtype=dtype)
        if params.patch_size_t is None:
            self.proj = operations.Conv2d(C, D, p, stride=p, **kw)
        else:
            self.proj = operations.Linear(C * params.patch_size_t * p * p, D, **kw)
        self.text_proj = operations.Linear(params.text_embed_dim, D, **kw)
        if params.use_learned_positional_embeddings:
            self.pos_embedding = nn.Parameter(torch.empty(1, params.table_rows, D, **kw))

    def forward(self, x, context):
        video, text = self.embed_video(x), self.text_proj(context)
        p, grid = self.params, self.params.grid(x.shape)
        if p.use_learned_positional_embeddings:
            text_code, code = self.learned_code(text.shape[1], grid, x)
            text = text + text_code
            video = video + code
        elif not p.use_rotary_positional_embeddings:
            video = video + self.sincos(grid, x)
        return video, text

    def embed_video(self, x):
        p, pt = self.params.patch_size, self.params.patch_size_t
        if pt is None:
            B, T = x.shape[0], x.shape[2]
            x = self.proj(x.transpose(1, 2).flatten(0, 1))
            return x.flatten(2).transpose(1, 2).reshape(B, -1, x.shape[1])  # frames side by side
        x = x.unflatten(4, (-1, p)).unflatten(3, (-1, p)).unflatten(2, (-1, pt))  # (B, C, t, pt, h, p, w, p)
        return self.proj(x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3))

    def sincos(self, grid, x):
        """Added code of the 2B, (N, D)."""
        p, (frames, height, width) = self.params, grid
        at = p.base_grid if p.resize_positions else (height, width)
        code = sincos_code(frames, *at, p.width, p.spatial_interpolation_scale, p.temporal_interpolation_scale, x.device)
        return resize_code(code, height, width).flatten(0, 2).to(x.dtype)

    def learned_code(self, length, grid, x):
        """Added code of 5B-I2V: text rows (length, D), video rows (N, D).

        Fewer frames than the table has use its first ones, as in the SAT code. Another grid than the trained one,
        which the reference refuses, uses the stretched table.
        """
        p, (frames, height, width) = self.params, grid
        table = self.pos_embedding[0].to(device=x.device, dtype=x.dtype)
        code = table[p.max_text_seq_length :].unflatten(0, (-1, *p.base_grid))
        if frames > len(code):
            raise ValueError(f"This model's position table holds {len(code)} latent frames, and {frames} were given. Make "
                             "the video shorter, or use context windows.")
        if length > p.max_text_seq_length:
            raise ValueError(f"This model's position table holds {p.max_text_seq_length} text tokens, and {length} were "
                             "given. Encode the text for so many.")
        return table[:length], resize_code(code[:frames], height, width).flatten(0, 2)


class TimestepEmbedding(nn.Module):
    """Linear, SiLU, Linear."""

    def __init__(self, in_features, width, *, device, dtype, operations):
        super().__init__()
        self.linear_1 = operations.Linear(in_features, width, device=device, dtype=dtype)
        self.linear_2 = operations.Linear(width, width, device=device, dtype=dtype)

    def forward(self, x):
        return self.linear_2(F.silu(self.linear_1(x)))


class AdaLayerNormZero(nn.Module):
    """Normalise text and video with shared weights, then shift and scale each by its own modulation."""

    def __init__(self, params, *, device, dtype, operations):
        super().__init__()
        kw = dict(device=device, dtype=dtype)
        self.linear = operations.Linear(params.time_embed_dim, 6 * params.width, **kw)
        self.norm = operations.LayerNorm(params.width, eps=params.norm_eps, **kw)

    def forward(self, x, context, embedding):
        """-> the joint sequence (B, L + N, D), text first, and the gates of video and text, (B, 1, D) each."""
        shift, scale, gate, text_shift, text_scale, text_gate = self.linear(F.silu(embedding))[:, None].chunk(6, dim=-1)
        parts = (text_shift, self.norm(context), 1 + text_scale), (shift, self.norm(x), 1 + scale)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return torch.cat([torch.addcmul(*part) for part in parts], dim=1), gate, text_gate
        # Right into their places: the sequence is a large tensor to copy.
        length = context.shape[1]
        h = x.new_empty(x.shape[0], length + x.shape[1], x.shape[2])
        for place, part in zip((h[:, :length], h[:, length:]), parts):
            torch.addcmul(*part, out=place)
        return h, gate, text_gate


class Attention(nn.Module):
    def __init__(self, params, *, device, dtype, operations):
        super().__init__()
        D, kw = params.width, dict(device=device, dtype=dtype)
        self.heads = params.num_attention_heads
        self.to_q = operations.Linear(D, D, **kw)
        self.to_k = operations.Linear(D, D, **kw)
        self.to_v = operations.Linear(D, D, **kw)
        self.norm_q = operations.LayerNorm(params.attention_head_dim, eps=1e-6, **kw)
        self.norm_k = operations.LayerNorm(params.attention_head_dim, eps=1e-6, **kw)
        self.to_out = nn.ModuleList([operations.Linear(D, D, **kw)])

    def forward(self, h, rope, attention):
        q = self.norm_q(self.to_q(h).unflatten(-1, (self.heads, -1)))
        k = self.norm_k(self.to_k(h).unflatten(-1, (self.heads, -1)))
        if rope is not None:
            q, k = rotate_pairs(q, *rope), rotate_pairs(k, *rope)
        return self.to_out[0](attention(q.flatten(2), k.flatten(2), self.to_v(h), self.heads, None))


class FeedForward(nn.Module):
    """Linear to 4 D, GELU (tanh form), Linear back. The two sit at net.0.proj and net.2, as in the released files."""

    def __init__(self, width, *, device, dtype, operations):
        super().__init__()
        first = nn.Module()
        first.proj = operations.Linear(width, 4 * width, device=device, dtype=dtype)
        self.net = nn.ModuleList([first, nn.Identity(), operations.Linear(4 * width, width, device=device, dtype=dtype)])

    def forward(self, h):
        h = self.net[0].proj(h)
        # In place where it may be: this is the largest tensor there is.
        h = F.gelu(h, approximate="tanh") if torch.is_grad_enabled() else torch.ops.aten.gelu_(h, approximate="tanh")
        return self.net[2](h)


class CogVideoBlock(nn.Module):
    def __init__(self, params, *, device, dtype, operations):
        super().__init__()
        kw = dict(device=device, dtype=dtype, operations=operations)
        self.norm1 = AdaLayerNormZero(params, **kw)
        self.attn1 = Attention(params, **kw)
        self.norm2 = AdaLayerNormZero(params, **kw)
        self.ff = FeedForward(params.width, **kw)

    def forward(self, x, context, embedding, rope, attention=sdpa, adapt=None):
        """x (B, N, D), context (B, L, D), embedding (B, time_embed_dim) -> x, context. adapt: changes the video tokens, normed,
        before attention."""
        length = context.shape[1]
        h, gate, text_gate = self.norm1(x, context, embedding)
        if adapt is not None:
            h = torch.cat([h[:, :length], adapt(h[:, length:])], dim=1)
        h = self.attn1(h, rope, attention)
        x, context = torch.addcmul(x, gate, h[:, length:]), torch.addcmul(context, text_gate, h[:, :length])
        h, gate, text_gate = self.norm2(x, context, embedding)
        h = self.ff(h)
        return torch.addcmul(x, gate, h[:, length:]), torch.addcmul(context, text_gate, h[:, :length])


class AdaLayerNorm(nn.Module):
    """LayerNorm, then the shift and scale that the time embedding asks for."""

    def __init__(self, params, *, device, dtype, operations):
        super().__init__()
        self.linear = operations.Linear(params.time_embed_dim, 2 * params.width, device=device, dtype=dtype)
        self.norm = operations.LayerNorm(params.width, eps=OUT_NORM_EPS, device=device, dtype=dtype)

    def forward(self, x, embedding):
        shift, scale = self.linear(F.silu(embedding))[:, None].chunk(2, dim=-1)
        return torch.addcmul(shift, self.norm(x), 1 + scale)


class CogVideoTransformer(nn.Module):
    """Predicts v (v-prediction) of a noisy video latent.

    device, dtype: where and as what the weights are made. operations: namespace of Linear, Conv2d and LayerNorm,
    torch.nn or a host's. Nothing here reads or initialises a weight, so the meta device and lazily loaded layers
    work; patch_embed.pos_embedding is uninitialised memory until a state dict fills it.
    """

    def __init__(self, params: CogVideoParams, *, device=None, dtype=None, operations=torch.nn):
        super().__init__()
        self.params = params
        kw = dict(device=device, dtype=dtype, operations=fastest(operations))
        self.patch_embed = PatchEmbed(params, **kw)
        self.time_embedding = TimestepEmbedding(params.width, params.time_embed_dim, **kw)
        if params.ofs_embed_dim:
            self.ofs_embedding = TimestepEmbedding(params.ofs_embed_dim, params.ofs_embed_dim, **kw)
        self.transformer_blocks = nn.ModuleList([CogVideoBlock(params, **kw) for _ in range(params.num_layers)])
        self.norm_final = operations.LayerNorm(params.width, eps=params.norm_eps, device=device, dtype=dtype)
        self.norm_out = AdaLayerNorm(params, **kw)
        patch = params.patch_size**2 * (params.patch_size_t or 1)
        self.proj_out = operations.Linear(params.width, patch * params.out_channels, device=device, dtype=dtype)

    def forward(self, x, timestep, context, ofs=None, *, attention=sdpa, run_block=None, adapt=None):
        """v at x.

        x (B, in_channels, T, H, W): the noisy latent at unit variance (VAE output times params.scaling_factor, plus
        noise), followed on the channels by what the variant is conditioned on. Any T, H and W: a side that the patch
        does not divide is filled up by repeating its last row or column, and an odd T of a 1.5 model by repeating the
        first latent in front, which is where its training had one to throw away; the output is cropped again.
        timestep (B,): 0..999, fractional allowed. context (B, L, text_embed_dim): T5 states, 226 as a rule, no mask.
        ofs (B,): 1.5-5B-I2V only, 2.0 unless given.
        attention(q, k, v, heads, mask): replaces sdpa; q, k, v (B, L + N, D), text first, mask None.
        run_block(i, call, x, context, embedding) -> x, context: stands around block i and runs it by
        call(x, context, embedding); x (B, N, D), context (B, L, D), embedding (B, time_embed_dim).
        adapt(i, tokens, grid) -> tokens: what block i's attention sees of the video, (B, N, D); grid: as CogVideoParams.grid.
        Returns (B, out_channels, T, H, W) in x's dtype. Raises ValueError when 5B-I2V's position table is too short.
        """
        p = self.params
        T, H, W = x.shape[2:]
        front = -T % (p.patch_size_t or 1)
        if front or H % p.patch_size or W % p.patch_size:
            x = F.pad(x, (0, -W % p.patch_size, 0, -H % p.patch_size, front, 0), mode="replicate")
        grid, dtype = p.grid(x.shape), x.dtype

        embedding = self.time_embedding(sinusoid(timestep, p.width).to(dtype))
        if p.ofs_embed_dim:
            ofs = torch.full_like(timestep, OFS, dtype=torch.float32) if ofs is None else ofs
            embedding = embedding + self.ofs_embedding(sinusoid(ofs, p.ofs_embed_dim).to(dtype))
        x, context = self.patch_embed(x, context.to(dtype))
        rope = joint_rope(p, grid, context.shape[1], x.device) if p.use_rotary_positional_embeddings else None

        for i, block in enumerate(self.transformer_blocks):
            change = None if adapt is None else partial(adapt, i, grid=grid)

            def call(x, context, embedding, block=block, change=change):
                return block(x, context, embedding, rope, attention, change)
            x, context = call(x, context, embedding) if run_block is None else run_block(i, call, x, context, embedding)

        x = self.proj_out(self.norm_out(self.norm_final(x), embedding))
        x = x.unflatten(1, grid).unflatten(-1, (p.out_channels, p.patch_size_t or 1, p.patch_size, p.patch_size))
        x = x.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return x[:, :, front:, :H, :W]


def joint_rope(params: CogVideoParams, grid, length: int, device):
    """(cos, sin) of the joint sequence, (L + N, head_dim / 2) each, in fp32. grid: patches along time, height and width.

    Text tokens get angle 0, so that one pass turns the whole sequence.
    """
    frames, height, width = grid

    def indices(n):
        return torch.arange(n, dtype=torch.float32, device=device)
    if params.patch_size_t is None:
        rows, columns = cropped_positions(height, width, *params.base_grid, device)
    else:
        rows, columns = indices(height), indices(width)
    cos, sin = rope_table(indices(frames), rows, columns, params.attention_head_dim)
    return F.pad(cos, (0, 0, length, 0), value=1.0), F.pad(sin, (0, 0, length, 0))
