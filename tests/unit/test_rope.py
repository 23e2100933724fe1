"""Rotary position code: the in-place form and the one that gradients and compilers take, against float64."""

import pytest
import torch

from sanacog.kernels.rope import rotate_pairs


def example(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, 8, generator=generator).to(dtype)
    angles = torch.randn(5, 4, generator=generator) * 10
    return x, angles.cos(), angles.sin()


def reference(x, cos, sin):
    even, odd = x.double()[..., ::2], x.double()[..., 1::2]
    cos, sin = cos.double()[:, None], sin.double()[:, None]
    out = torch.empty_like(x, dtype=torch.float64)
    out[..., ::2], out[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
    return out


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("dtype, limit", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_values(dtype, limit, gradients):
    x, cos, sin = example(dtype)
    want = reference(x, cos, sin)
    got = rotate_pairs(x.requires_grad_(gradients), cos, sin)
    assert got.dtype == dtype and got.shape == x.shape
    torch.testing.assert_close(got.detach().double(), want, rtol=0, atol=limit * 5)


def test_a_strided_input_is_right_and_stays():
    x, cos, sin = example()
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    before = strided.clone()
    torch.testing.assert_close(rotate_pairs(strided, cos, sin).double(), reference(before, cos, sin), rtol=0, atol=1e-5)
    assert torch.equal(strided, before)


def test_gradient():
    x, cos, sin = example()
    rotate_pairs(x.requires_grad_(), cos, sin).sum().backward()
    # A rotation's gradient is the rotation back.
    torch.testing.assert_close(x.grad.double(), reference(torch.ones_like(x), cos, -sin), rtol=0, atol=1e-5)
