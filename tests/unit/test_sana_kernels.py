"""The eager operations against their definitions, written out in float64."""

import pytest
import torch
import torch.nn.functional as F

from sanacog.kernels.glumbconv import gated_depthwise
from sanacog.kernels.linear_attention import relu_linear_attention


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def attention_by_weights(q, k, v):
    """The quadratic form: every pair's weight, then the weighted mean."""
    q, k, v = (t.double().transpose(1, 2) for t in (q, k, v))
    weights = q.relu() @ k.relu().transpose(-1, -2)
    return (weights / weights.sum(-1, keepdim=True) @ v).transpose(1, 2)


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_linear_attention_is_the_quadratic_form(dtype, bound):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 50, 3, 8).to(dtype).unbind()
    out = relu_linear_attention(q, k, v)
    assert out.dtype == dtype and out.shape == q.shape
    assert relative(out, attention_by_weights(q, k, v)) < bound


def test_linear_attention_over_other_tokens_than_its_own():
    q, k, v = torch.randn(1, 5, 2, 8), torch.randn(1, 9, 2, 8), torch.randn(1, 9, 2, 8)
    assert relative(relu_linear_attention(q, k, v), attention_by_weights(q, k, v)) < 1e-6


def test_linear_attention_has_its_state_in_fp32():
    """In fp16, sums over 4096 tokens of this size overflow and eps is zero."""
    torch.manual_seed(0)
    q, k, v = (torch.rand(3, 1, 4096, 1, 32) * 40).half().unbind()
    out = relu_linear_attention(q, k, v)
    assert out.isfinite().all() and relative(out, attention_by_weights(q, k, v)) < 1e-3


def test_linear_attention_of_a_dead_query_is_zero():
    q, k, v = -torch.ones(1, 4, 2, 8, dtype=torch.float16), *torch.randn(2, 1, 4, 2, 8).half().unbind()
    assert (relu_linear_attention(q, k, v) == 0).all()


@pytest.mark.parametrize("height, width", [(4, 4), (3, 7)])
def test_gated_depthwise(height, width):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(12, 12, 3, padding=1, groups=12)
    x = torch.randn(2, height * width, 12)
    picture = F.silu(x.double()).reshape(2, height, width, 12)
    expected = torch.zeros(2, height, width, 12, dtype=torch.float64) + conv.bias.double()
    for row in range(height):
        for column in range(width):
            for dr in (-1, 0, 1):
                for dc in (-1, 0, 1):
                    r, c = row + dr, column + dc
                    if 0 <= r < height and 0 <= c < width:
                        expected[:, row, column] += picture[:, r, c] * conv.weight[:, 0, dr + 1, dc + 1].double()
    value, gate = expected[..., :6], expected[..., 6:]
    out = gated_depthwise(x, conv, height, width)
    assert out.shape == (2, height * width, 6)
    assert relative(out, (value * F.silu(gate)).flatten(1, 2)) < 1e-6
