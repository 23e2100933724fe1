"""ReLU linear attention in two passes: keys and values shrink to a state per head, then every query reads it.

Each pass reads its inputs once, in their own dtype and strides; the eager form makes some ten passes over them.
The tokens are split among programs whose partial states the second pass adds up, in a fixed order: no atomics, so a seed
gives the same picture twice.
"""

import torch
import triton
import triton.language as tl

from .. import register

STATE_BLOCK = {2: 128, 4: 32}  # tokens at a time, by the bytes of a number: more would not fit the registers
APPLY_BLOCK = 64
PROGRAMS = 256                 # enough to keep a large GPU's memory busy, two a multiprocessor
MOST_SPLITS = 16


@triton.jit
def state_kernel(k, v, partial, tokens, heads, k_b, k_n, k_h, k_d, v_b, v_n, v_h, v_d,
                 DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """partial (splits, B * H, DIM + 1, DIM) in fp32: relu(k)^T v over BLOCKS blocks of tokens, below it the sum of
    relu(k)."""
    pair = tl.program_id(0)
    split = tl.program_id(1)
    batch = (pair // heads).to(tl.int64)
    head = pair % heads
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    d = tl.arange(0, DIM)
    state = tl.zeros([DIM, DIM], tl.float32)
    total = tl.zeros([DIM], tl.float32)
    for block in range(BLOCKS):
        n = (split * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        inside = (n < tokens)[:, None]
        n = n.to(tl.int64)[:, None]
        keys = tl.load(k + n * k_n + d[None, :] * k_d, inside, 0.0)
        keys = tl.where(keys < 0, 0.0, keys).to(keys.dtype)  # unlike a maximum this keeps NaN
        values = tl.load(v + n * v_n + d[None, :] * v_d, inside, 0.0)
        state = tl.dot(tl.trans(keys), values, state, input_precision="tf32x3")
        total += tl.sum(keys.to(tl.float32), 0)
    partial += (split * tl.num_programs(0) + pair) * (DIM + 1) * DIM
    tl.store(partial + d[:, None] * DIM + d[None, :], state)
    tl.store(partial + DIM * DIM + d, total)


@triton.jit
def apply_kernel(q, partial, out, tokens, heads, eps, q_b, q_n, q_h, q_d,
                 DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, SPLITS: tl.constexpr):
    """out (B, N, H, DIM), contiguous: relu(q) times the state, over relu(q) times the sum of keys."""
    pair = tl.program_id(0)
    batch = (pair // heads).to(tl.int64)
    head = pair % heads
    q += batch * q_b + head * q_h
    out += (batch * tokens * heads + head) * DIM
    d = tl.arange(0, DIM)
    state = tl.zeros([DIM, DIM], tl.float32)
    total = tl.zeros([DIM], tl.float32)
    for split in range(SPLITS):
        part = partial + (split * tl.num_programs(0) + pair) * (DIM + 1) * DIM
        state += tl.load(part + d[:, None] * DIM + d[None, :])
        total += tl.load(part + DIM * DIM + d)
    for block in range(BLOCKS):
        n = (tl.program_id(1) * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
        inside = (n < tokens)[:, None]
        n = n.to(tl.int64)[:, None]
        queries = tl.load(q + n * q_n + d[None, :] * q_d, inside, 0.0).to(tl.float32)
        queries = tl.where(queries < 0, 0.0, queries)
        # tf32x3: as good as fp32, which the matrix units do not have. A 16-bit query is exact in tf32.
        above = tl.dot(queries, state, input_precision="tf32x3")
        below = tl.sum(queries * total[None, :], 1) + eps
        result = above / below[:, None]
        tl.store(out + n * heads * DIM + d[None, :], result.to(out.dtype.element_ty), inside)


def share(blocks, pairs, most):
    """(blocks a program does, programs) of the `blocks` that each of the pairs has: at least PROGRAMS programs in all where
    there is work for them, at most `most` a pair. The first is a power of two, so that few sizes mean few compilations."""
    each = 1
    while blocks * pairs >= 2 * each * PROGRAMS or triton.cdiv(blocks, each) > most:
        each *= 2
    return each, triton.cdiv(blocks, each)


def launch(q, k, v, eps):
    batch, length, heads, dim = q.shape
    pairs = batch * heads
    block = STATE_BLOCK[q.element_size()]
    each, splits = share(triton.cdiv(k.shape[1], block), pairs, MOST_SPLITS)
    partial = q.new_empty(splits, pairs, dim + 1, dim, dtype=torch.float32)
    state_kernel[pairs, splits](k, v, partial, k.shape[1], heads, *k.stride(), *v.stride(),
                                DIM=dim, BLOCK=block, BLOCKS=each)
    out = q.new_empty(q.shape)
    blocks = triton.cdiv(length, APPLY_BLOCK)
    each, programs = share(blocks, pairs, blocks)
    apply_kernel[pairs, programs](q, partial, out, length, heads, eps, *q.stride(),
                                  DIM=dim, BLOCK=APPLY_BLOCK, BLOCKS=each, SPLITS=splits)
    return out


register.add_kernel("relu_linear_attention", launch)


@torch.library.custom_op("sanacog::relu_linear_attention", mutates_args=())
def operator(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, eps: float) -> torch.Tensor:
    return register.launch("relu_linear_attention", q, k, v, eps)


@operator.register_fake
def _(q, k, v, eps):
    return q.new_empty(q.shape)
