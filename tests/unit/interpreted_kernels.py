"""The Triton kernels on the CPU, in Triton's interpreter, against float64.

The interpreter must be chosen before the kernels are imported, so these tests run in a pytest of their own, which
test_kernels_interpreted.py starts. fp32 and fp16 only where a kernel multiplies matrices: the interpreter gets bf16
products wrong. What the kernels are to write is NaN before: torch fills new memory with it.
"""

import os

import pytest
import torch

from . import kernel_cases as cases

assert os.environ.get("TRITON_INTERPRET") == "1", "started by test_kernels_interpreted.py"
from sanacog.kernels.fused import glumbconv, linear_attention, rms_norm, rope, rotary_attention, spatial_norm  # noqa: E402

LIMITS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}
HALVES = [torch.float32, torch.float16]


@pytest.fixture
def poisoned():
    torch.use_deterministic_algorithms(True)
    assert torch.ones(1).new_empty(9).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def check(got, want, dtype):
    assert got.dtype == dtype and got.shape == want.shape
    assert got.isfinite().all() and cases.relative(got, want) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("batch, queries, keys, heads, dim", [(2, 70, 70, 3, 32), (1, 9, 200, 2, 16), (1, 257, 5, 1, 16)])
def test_linear_attention(poisoned, batch, queries, keys, heads, dim, dtype):
    q, k, v = cases.attention_inputs(batch, queries, keys, heads, dim, dtype)
    out = linear_attention.launch(q, k, v, 1e-15)
    check(out, cases.attention(q, k, v), dtype)
    assert out.is_contiguous()


def test_linear_attention_with_parts_to_add_up(poisoned, monkeypatch):
    """Many programs a head, and programs that do several blocks each, the last of them partly empty."""
    q, k, v = cases.attention_inputs(1, 300, 300, 2, 16)
    want = cases.attention(q, k, v)
    monkeypatch.setattr(linear_attention, "APPLY_BLOCK", 32)
    for programs in (1, 8, 256):
        monkeypatch.setattr(linear_attention, "PROGRAMS", programs)
        check(linear_attention.launch(q, k, v, 1e-15), want, torch.float32)


def shares(blocks, pairs, most):
    each, programs = linear_attention.share(blocks, pairs, most)
    assert each * programs >= blocks > each * (programs - 1) and programs <= most and each & (each - 1) == 0
    return each, programs


def test_how_tokens_are_shared():
    assert shares(8, 140, 16) == (4, 2)    # Sana 1.6B, 1024 px, batch 2
    assert shares(128, 16, 16) == (8, 16)  # DC-AE, 1024 px
    assert shares(1, 1, 16) == (1, 1)
    shares(999, 1, 16)


def test_linear_attention_keeps_its_sums_in_fp32_and_gives_zeros_for_dead_queries(poisoned):
    q, k, v = (t.abs() * 40 for t in cases.attention_inputs(1, 8, 256, 1, 16, torch.float16))
    check(linear_attention.launch(q, k, v, 1e-15), cases.attention(q, k, v), torch.float16)
    assert (linear_attention.launch(-q, k, v, 1e-15) == 0).all()


def test_linear_attention_hides_no_nan(poisoned):
    q, k, v = cases.attention_inputs(1, 4, 4, 1, 16)
    k[0, 2, 0, 3] = float("nan")
    assert linear_attention.launch(q, k, v, 1e-15).isnan().any()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("batch, tokens, heads, dim, relu_first", [
    (2, 70, 3, 24, True), (1, 9, 2, 112, True), (1, 9, 2, 112, False), (1, 133, 1, 16, False)])
def test_rotary_attention(poisoned, batch, tokens, heads, dim, relu_first, dtype):
    q, k, v, cos, sin = cases.rotary_inputs(batch, tokens, heads, dim, dtype)
    values, keys = cases.rotary_state(k, v, cos, sin, relu_first)
    got = rotary_attention.launch_state(k, v, cos, sin, relu_first)
    check(got[0], values, torch.float32)
    check(got[1], keys, torch.float32)
    out = rotary_attention.launch_read(q, *got, cos, sin, 1e-8, relu_first)
    check(out, cases.rotary_read(q, values, keys, cos, sin, relu_first), dtype)
    assert out.is_contiguous()


def test_rotary_attention_with_parts_to_add_up(poisoned, monkeypatch):
    q, k, v, cos, sin = cases.rotary_inputs(1, 300, 2, 16)
    for programs in (1, 8, 256):
        monkeypatch.setattr(linear_attention, "PROGRAMS", programs)
        got = rotary_attention.launch_state(k, v, cos, sin, True)
        check(got[0], cases.rotary_state(k, v, cos, sin, True)[0], torch.float32)


@pytest.mark.parametrize("dtype", [*HALVES, torch.bfloat16])
@pytest.mark.parametrize("batch, height, width, hidden", [(2, 3, 5, 20), (1, 17, 4, 8), (1, 1, 1, 300)])
def test_gated_depthwise(poisoned, batch, height, width, hidden, dtype):
    inputs = cases.gate_inputs(batch, height, width, hidden, dtype)
    out = glumbconv.launch(*inputs)
    check(out, cases.gate(*inputs), dtype)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_gated_depthwise_of_a_picture_in_planes(poisoned):
    x, weight, bias = cases.gate_inputs(1, 4, 6, 5)
    check(glumbconv.launch(x.contiguous(), weight, bias), cases.gate(x, weight, bias), torch.float32)


def between_guards(x):
    """x as the middle of a larger tensor, and that."""
    guarded = torch.full((len(x) + 2, *x[0].permute(*range(1, x.ndim - 1), 0).shape), -7.0, dtype=x.dtype).movedim(-1, 1)
    guarded[1:-1] = x
    return guarded[1:-1], guarded


def unharmed(guarded):
    return (guarded[[0, -1]] == -7).all()


@pytest.mark.parametrize("dtype", [*HALVES, torch.bfloat16])
@pytest.mark.parametrize("channels, activation, added", [(96, None, True), (128, "relu", False), (20, "silu", True)])
def test_rms_norm(channels, activation, added, dtype):
    x, residual, weight, bias = cases.norm_inputs(2, channels, 7, 5, dtype)
    residual = residual if added else None
    want = cases.norm(x, weight, bias, 1e-5, residual, activation)
    x, guarded = between_guards(x)
    out = rms_norm.launch(x, weight, bias, 1e-5, residual, activation)
    check(out, want, dtype)
    assert out is x and unharmed(guarded)


@pytest.mark.parametrize("dtype", [*HALVES, torch.bfloat16])
@pytest.mark.parametrize("batch, tokens, heads, dim", [(2, 5, 3, 64), (1, 3, 18, 16)])
def test_rope(batch, tokens, heads, dim, dtype):
    x, cos, sin = cases.rope_inputs(batch, tokens, heads, dim, dtype)
    want = cases.rope(x, cos, sin)
    guarded = torch.full((batch, tokens, heads + 2, dim), -7.0, dtype=dtype)
    guarded[:, :, 1:-1] = x
    check(rope.launch(guarded[:, :, 1:-1], cos, sin), want, dtype)
    assert unharmed(guarded.transpose(0, 2))


@pytest.mark.parametrize("dtype", [*HALVES, torch.bfloat16])
@pytest.mark.parametrize("frames, latents, times", [(9, 3, 8), (8, 2, 4), (1, 1, 2), (3, 3, 1)])
def test_scale_shift_silu(frames, latents, times, dtype):
    x, scale, shift = cases.spatial_inputs(frames, latents, 3, 5, times, batch=1, channels=2, dtype=dtype)
    want = cases.spatial(x, scale, shift)
    guarded = torch.full((len(x) + 2, *x.shape[1:]), -7.0, dtype=dtype)
    guarded[1:-1] = x
    check(spatial_norm.launch(guarded[1:-1], scale, shift), want, dtype)
    assert unharmed(guarded)


def test_scale_shift_silu_of_frames_wider_than_a_tile():
    x, scale, shift = cases.spatial_inputs(1, 1, 3, 35, 4, batch=1, channels=1)
    check(spatial_norm.launch(x.clone(), scale, shift), cases.spatial(x, scale, shift), torch.float32)
