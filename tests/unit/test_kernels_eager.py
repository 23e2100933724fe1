"""The eager operations, which are the specification of the kernels, against float64."""

import pytest
import torch

from sanacog.kernels import rotary_attention
from sanacog.kernels.dcae import add_channels_to_space, add_space_to_channels
from sanacog.kernels.glumbconv import gated_depthwise, gating
from sanacog.kernels.rms_norm import rms_norm
from sanacog.kernels.spatial_norm import scale_shift_silu

from . import kernel_cases as cases


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("gradients", [False, True])
def test_rms_norm(activation, gradients):
    x, residual, weight, bias = cases.norm_inputs(2, 12, 5, 3)
    for added in (None, residual):
        want = cases.norm(x, weight, bias, 1e-5, added, activation)
        with torch.set_grad_enabled(gradients):
            got = rms_norm(x.clone(), weight, bias, 1e-5, added, activation)
        assert cases.relative(got, want) < 1e-6 and got.shape == x.shape


def test_rms_norm_in_half_precision_sums_up_in_fp32():
    x = torch.full((1, 64, 2, 2), 200.0, dtype=torch.float16)  # its squares are infinite in fp16
    with torch.inference_mode():
        out = rms_norm(x, torch.ones(64).half(), torch.zeros(64).half(), 1e-5)
    torch.testing.assert_close(out, torch.ones_like(out))


# frames and latents of a first chunk, of a later one, of a single frame, of a chunk before its frames are doubled
@pytest.mark.parametrize("frames, latents", [(9, 3), (8, 2), (1, 1), (3, 3), (5, 3), (2, 2)])
def test_scale_shift_silu(frames, latents):
    inputs = cases.spatial_inputs(frames, latents, 3, 2, times=4)
    want = cases.spatial(*inputs)
    assert cases.relative(scale_shift_silu(*inputs), want) < 1e-6


def test_a_gating_layer_gates_what_has_value_and_gate_apart_and_nothing_else():
    layer = gating(torch.nn.Conv2d)(14, 14, 3, padding=1, groups=14)
    x, weight, bias = cases.gate_inputs(2, 3, 5, 7)
    layer.load_state_dict({"weight": weight, "bias": bias})
    assert cases.relative(layer(x), cases.gate(x, weight, bias)) < 1e-6

    tokens = x.permute(0, 3, 4, 1, 2).reshape(2, 15, 14)
    want = cases.gate(x, weight, bias).permute(0, 2, 3, 1).flatten(1, 2)
    assert cases.relative(gated_depthwise(tokens.clone(), layer, 3, 5), want) < 1e-6
    with torch.no_grad():
        assert cases.relative(gated_depthwise(tokens.clone(), layer, 3, 5), want) < 1e-6

    picture = x.flatten(1, 2)
    plain = torch.nn.functional.conv2d(picture, weight, bias, padding=1, groups=14)
    torch.testing.assert_close(layer(picture), plain)


# Widths of DC-AE's stages, and some that no place of a patch divides.
@pytest.mark.parametrize("large, small", [(8, 8), (4, 8), (2, 8), (8, 4), (6, 8), (12, 4)])
def test_shortcuts(large, small):
    """From the small picture to the large one with fewer channels and back, by their definitions."""
    down, up = cases.random(2, small, 3, 5), cases.random(2, large, 6, 10, seed=1)
    want = torch.zeros(2, large, 6, 10, dtype=torch.float64)
    repeated = down.double().repeat_interleave(4 * large // small, dim=1)
    back = torch.zeros(2, small, 3, 5, dtype=torch.float64)
    for channel in range(4 * large):
        i, j = channel % 4 // 2, channel % 2
        want[:, channel // 4, i::2, j::2] = repeated[:, channel]
        back[:, channel * small // (4 * large)] += up[:, channel // 4, i::2, j::2].double() * small / (4 * large)
    for add, out, x, expected in ((add_channels_to_space, up, down, want), (add_space_to_channels, down, up, back)):
        assert cases.relative(add(out.clone(), x), out.double() + expected) < 1e-6


@pytest.mark.parametrize("relu_first", [True, False])
@pytest.mark.parametrize("batch, tokens, heads, dim, dtype", [(2, 33, 3, 24, torch.float32), (1, 9, 2, 112, torch.bfloat16)])
def test_rotary_attention(batch, tokens, heads, dim, dtype, relu_first):
    """And of two parts of the tokens the states add up to that of all."""
    q, k, v, cos, sin = cases.rotary_inputs(batch, tokens, heads, dim, dtype)
    kept = [t.clone() for t in (q, k, v)]
    values, keys = cases.rotary_state(k, v, cos, sin, relu_first)
    state = rotary_attention.state_of(k, v, cos, sin, relu_first)
    out = rotary_attention.read_state(q, state, cos, sin, 1e-8, relu_first)
    assert all(torch.equal(a, b) for a, b in zip((q, k, v), kept))  # nothing that was given is written into
    limit = 2e-6 if dtype == torch.float32 else 1e-2
    assert cases.relative(state.values, values) < limit and cases.relative(state.keys, keys) < limit
    assert out.dtype == dtype and cases.relative(out, cases.rotary_read(q, values, keys, cos, sin, relu_first)) < limit
    parts = [rotary_attention.state_of(k[:, part], v[:, part], cos[part], sin[part], relu_first) for part in (slice(4), slice(4, None))]
    assert cases.relative((parts[0] + parts[1]).values, values) < limit
