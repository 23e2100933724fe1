"""Rotary position code on interleaved channel pairs, in place: one read and one write, angles shared by all heads."""

import triton
import triton.language as tl

from .. import register

HEADS = 16  # at a time


@triton.jit
def rope_kernel(x, cos, sin, heads, x_b, x_n, x_h, DIM: tl.constexpr, HEADS: tl.constexpr):
    """x (B, N, H, DIM) by strides, neighbouring channels side by side; cos and sin (N, DIM / 2)."""
    token = tl.program_id(0)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, DIM // 2)
    x += tl.program_id(2).to(tl.int64) * x_b + token.to(tl.int64) * x_n
    at = x + head[:, None] * x_h + tl.arange(0, DIM)[None, :]
    inside = (head < heads)[:, None]
    # Loaded as they lie, and parted afterwards: every line of memory is read once.
    even, odd = tl.split(tl.reshape(tl.load(at, inside, 0.0).to(tl.float32), [HEADS, DIM // 2, 2]))
    cos = tl.load(cos + token * (DIM // 2) + pair)[None, :]
    sin = tl.load(sin + token * (DIM // 2) + pair)[None, :]
    turned = tl.join(even * cos - odd * sin, even * sin + odd * cos)
    tl.store(at, tl.reshape(turned, [HEADS, DIM]), inside)


def launch(x, cos, sin):
    batch, tokens, heads, dim = x.shape
    rope_kernel[tokens, triton.cdiv(heads, HEADS), batch](x, cos, sin, heads, *x.stride()[:3], DIM=dim, HEADS=HEADS)
    return x


register.add_kernel("rotate_pairs", launch)
