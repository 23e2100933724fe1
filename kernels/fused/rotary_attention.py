"""Rotary linear attention in two passes, as linear_attention.py: ReLU and the turn by position are done where keys and queries are
read, which the eager form writes out in full and in fp32.

Even and odd channels, whose pairs are turned, stand apart in the registers: each half of the state has the rows of one of them.
"""

import torch
import triton
import triton.language as tl

from .. import register
from .linear_attention import MOST_SPLITS, share

# With more the registers would not do, or the shared memory of the smaller GPUs (tests/unit/test_kernels_compiled.py).
BLOCK = 16  # tokens at a time
OPTIONS = dict(num_warps=8, num_stages=1)
COLUMNS = 64  # of the state at a time


@triton.jit
def turned(even, odd, c, s, RELU: tl.constexpr):
    """(turned even, turned odd, both after ReLU), of a block of pairs; all in fp32."""
    positive_even = tl.where(even < 0, 0.0, even)  # unlike a maximum this keeps NaN
    positive_odd = tl.where(odd < 0, 0.0, odd)
    e = positive_even if RELU else even
    o = positive_odd if RELU else odd
    return e * c - o * s, e * s + o * c, positive_even, positive_odd


@triton.jit
def state_kernel(k, v, cos, sin, values, keys, tokens, heads, k_b, k_n, k_h, v_b, v_n, v_h, DIM: tl.constexpr, HALF: tl.constexpr,
                 WIDTH: tl.constexpr, OUT: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """values (splits, B * H, DIM, OUT) and keys (splits, B * H, DIM) in fp32, of BLOCKS blocks of tokens each; WIDTH columns of OUT a
    program. HALF, WIDTH: powers of two, HALF at least DIM / 2."""
    pair = tl.program_id(0)
    split = tl.program_id(1)
    batch = (pair // heads).to(tl.int64)
    head = pair % heads
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    p = tl.arange(0, HALF)
    d = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    state_even = tl.zeros([HALF, WIDTH], tl.float32)
    state_odd = tl.zeros([HALF, WIDTH], tl.float32)
    sum_even = tl.zeros([HALF], tl.float32)
    sum_odd = tl.zeros([HALF], tl.float32)
    for block in range(BLOCKS):
        n = (split * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        inside = (n < tokens)[:, None]
        n = n.to(tl.int64)[:, None]
        here = inside & (p < DIM // 2)[None, :]
        even = tl.load(k + n * k_n + 2 * p[None, :], here, 0.0).to(tl.float32)
        odd = tl.load(k + n * k_n + 2 * p[None, :] + 1, here, 0.0).to(tl.float32)
        c = tl.load(cos + n * (DIM // 2) + p[None, :], here, 0.0)
        s = tl.load(sin + n * (DIM // 2) + p[None, :], here, 0.0)
        turned_even, turned_odd, even, odd = turned(even, odd, c, s, RELU)
        entries = tl.load(v + n * v_n + d[None, :], inside & (d < OUT)[None, :], 0.0).to(tl.float32)
        state_even = tl.dot(tl.trans(turned_even), entries, state_even, input_precision="tf32x3")
        state_odd = tl.dot(tl.trans(turned_odd), entries, state_odd, input_precision="tf32x3")
        sum_even += tl.sum(even, 0)
        sum_odd += tl.sum(odd, 0)
    place = split * tl.num_programs(0) + pair
    values += place.to(tl.int64) * DIM * OUT
    keys += place * DIM
    whole = (p < DIM // 2)[:, None] & (d < OUT)[None, :]
    tl.store(values + 2 * p[:, None] * OUT + d[None, :], state_even, whole)
    tl.store(values + (2 * p[:, None] + 1) * OUT + d[None, :], state_odd, whole)
    # Every program of a pair's columns has the same sums.
    tl.store(keys + 2 * p, sum_even, p < DIM // 2)
    tl.store(keys + 2 * p + 1, sum_odd, p < DIM // 2)


@triton.jit
def read_kernel(q, values, keys, cos, sin, out, tokens, heads, eps, q_b, q_n, q_h, DIM: tl.constexpr, HALF: tl.constexpr,
                WIDTH: tl.constexpr, OUT: tl.constexpr, RELU: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """out (B, N, H, OUT), contiguous: turned queries times values, over queries after ReLU times keys."""
    pair = tl.program_id(0)
    batch = (pair // heads).to(tl.int64)
    head = pair % heads
    q += batch * q_b + head * q_h
    out += (batch * tokens * heads + head) * OUT
    values += pair.to(tl.int64) * DIM * OUT
    keys += pair * DIM
    p = tl.arange(0, HALF)
    d = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    entries = (p < DIM // 2)[:, None] & (d < OUT)[None, :]
    state_even = tl.load(values + 2 * p[:, None] * OUT + d[None, :], entries, 0.0)
    state_odd = tl.load(values + (2 * p[:, None] + 1) * OUT + d[None, :], entries, 0.0)
    sum_even = tl.load(keys + 2 * p, p < DIM // 2, 0.0)
    sum_odd = tl.load(keys + 2 * p + 1, p < DIM // 2, 0.0)
    for block in range(BLOCKS):
        n = (tl.program_id(1) * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        inside = (n < tokens)[:, None]
        n = n.to(tl.int64)[:, None]
        here = inside & (p < DIM // 2)[None, :]
        even = tl.load(q + n * q_n + 2 * p[None, :], here, 0.0).to(tl.float32)
        odd = tl.load(q + n * q_n + 2 * p[None, :] + 1, here, 0.0).to(tl.float32)
        c = tl.load(cos + n * (DIM // 2) + p[None, :], here, 0.0)
        s = tl.load(sin + n * (DIM // 2) + p[None, :], here, 0.0)
        turned_even, turned_odd, even, odd = turned(even, odd, c, s, RELU)
        above = tl.dot(turned_even, state_even, input_precision="tf32x3")
        above = tl.dot(turned_odd, state_odd, above, input_precision="tf32x3")
        below = tl.sum(even * sum_even[None, :] + odd * sum_odd[None, :], 1) + eps
        result = above / below[:, None]
        tl.store(out + n * heads * OUT + d[None, :], result.to(out.dtype.element_ty), inside & (d < OUT)[None, :])


def _sizes(dim, width):
    """HALF and WIDTH, powers of two, 16 at least, as matrix units take; and how many programs share the columns: more than COLUMNS of
    them would not fit the registers."""
    wide = min(COLUMNS, max(16, triton.next_power_of_2(width)))
    return max(16, triton.next_power_of_2(dim // 2)), wide, triton.cdiv(width, wide)


def launch_state(k, v, cos, sin, relu_first):
    k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (k, v))
    batch, tokens, heads, dim = k.shape
    width, pairs = v.shape[-1], batch * heads
    half, wide, columns = _sizes(dim, width)
    each, splits = share(triton.cdiv(tokens, BLOCK), pairs, MOST_SPLITS)
    values = k.new_empty(splits, batch, heads, dim, width, dtype=torch.float32)
    keys = k.new_empty(splits, batch, heads, dim, dtype=torch.float32)
    state_kernel[pairs, splits, columns](k, v, cos.contiguous(), sin.contiguous(), values, keys, tokens, heads, *k.stride()[:3], *v.stride()[:3],
                                DIM=dim, HALF=half, WIDTH=wide, OUT=width, RELU=relu_first, BLOCK=BLOCK, BLOCKS=each, **OPTIONS)
    return values.sum(0), keys.sum(0)


def launch_read(q, values, keys, cos, sin, eps, relu_first):
    q = q if q.stride(-1) == 1 else q.contiguous()
    batch, tokens, heads, dim = q.shape
    width, pairs = values.shape[-1], batch * heads
    half, wide, columns = _sizes(dim, width)
    out = q.new_empty(batch, tokens, heads, width)
    blocks = triton.cdiv(tokens, BLOCK)
    each, programs = share(blocks, pairs, blocks)
    read_kernel[pairs, programs, columns](q, values.contiguous(), keys.contiguous(), cos.contiguous(), sin.contiguous(), out, tokens, heads, eps,
                                 *q.stride()[:3], DIM=dim, HALF=half, WIDTH=wide, OUT=width, RELU=relu_first, BLOCK=BLOCK, BLOCKS=each,
                                 **OPTIONS)
    return out


register.add_kernel("rotary_state", launch_state)
register.add_kernel("rotary_read", launch_read)
