"""The kernels on a GPU, through the operations that the models call, at sizes of the models."""

import pytest
import torch

from sanacog.kernels import dispatch, register
from sanacog.kernels.glumbconv import gated_depthwise, gating
from sanacog.kernels.linear_attention import relu_linear_attention
from sanacog.kernels.rms_norm import rms_norm
from sanacog.kernels.rope import rotate_pairs
from sanacog.kernels.spatial_norm import scale_shift_silu

from . import kernel_cases as cases

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
LIMITS = {torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}
DTYPES = pytest.mark.parametrize("dtype", LIMITS)


@pytest.fixture(autouse=True)
def really_fused(monkeypatch):
    """Every test here has to end in the kernel that it is about."""
    if not dispatch.available(0):
        pytest.skip("no kernels on this GPU")
    for name in list(register._eager):
        monkeypatch.setitem(register._eager, name, lambda *args: pytest.fail("eager"))
    torch.use_deterministic_algorithms(True, warn_only=True)  # what kernels are to write is NaN before
    yield
    torch.use_deterministic_algorithms(False)
    assert not register._broken


def check(got, want, dtype):
    assert got.dtype == dtype and got.isfinite().all() and cases.relative(got, want) < LIMITS[dtype]


@DTYPES
@pytest.mark.parametrize("batch, tokens, heads", [(2, 256, 36), (1, 1024, 70), (1, 4099, 36), (2, 16384, 3)])
@torch.inference_mode()
def test_linear_attention(batch, tokens, heads, dtype):
    q, k, v = cases.attention_inputs(batch, tokens, tokens, heads, 32, dtype, "cuda")
    state = k.double().relu().permute(0, 2, 3, 1) @ v.double().transpose(1, 2)  # the quadratic form would not fit
    queries = q.double().relu().transpose(1, 2)
    want = queries @ state / (queries @ k.double().relu().sum(1).unsqueeze(-1) + 1e-15)
    check(relu_linear_attention(q, k, v), want.transpose(1, 2), dtype)


@DTYPES
@pytest.mark.parametrize("batch, height, width, hidden", [(2, 16, 16, 2880), (1, 32, 32, 5600), (1, 19, 45, 100)])
@torch.inference_mode()
def test_gated_depthwise(batch, height, width, hidden, dtype):
    x, weight, bias = cases.gate_inputs(batch, height, width, hidden, dtype, "cuda")
    layer = gating(torch.nn.Conv2d)(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
    layer.load_state_dict({"weight": weight, "bias": bias}, assign=True)
    out = gated_depthwise(x.permute(0, 3, 4, 1, 2).flatten(3).flatten(1, 2), layer, height, width)
    check(out, cases.gate(x, weight, bias).permute(0, 2, 3, 1).flatten(1, 2), dtype)


@DTYPES
@pytest.mark.parametrize("channels", [128, 512, 1024, 96])
@torch.inference_mode()
def test_rms_norm(channels, dtype):
    x, residual, weight, bias = cases.norm_inputs(2, channels, 37, 64, dtype, "cuda")
    want = cases.norm(x, weight, bias, 1e-5, residual, "relu")
    check(rms_norm(x, weight, bias, 1e-5, residual, "relu"), want, dtype)


@DTYPES
@torch.inference_mode()
def test_rope(dtype):
    x, cos, sin = cases.rope_inputs(2, 1000, 48, 64, dtype, "cuda")
    want = cases.rope(x, cos, sin)
    check(rotate_pairs(x, cos, sin), want, dtype)


@DTYPES
@torch.inference_mode()
def test_scale_shift_silu(dtype):
    x, scale, shift = cases.spatial_inputs(9, 3, 15, 23, 8, batch=1, channels=64, dtype=dtype, device="cuda")
    want = cases.spatial(x, scale, shift)
    check(scale_shift_silu(x, scale, shift), want, dtype)


@torch.inference_mode()
def test_a_compiled_graph_gives_the_same():
    q, k, v = cases.attention_inputs(1, 300, 300, 4, 32, torch.bfloat16, "cuda")
    got = torch.compile(relu_linear_attention, fullgraph=True)(q, k, v)
    assert torch.equal(got, relu_linear_attention(q, k, v))
