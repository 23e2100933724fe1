"""What is computed in bf16 on a CPU that multiplies it, and that the host's options win."""

import pytest
import torch

from . import tiny

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture(scope="module")
def mm(comfyui_path):
    tiny.import_host(comfyui_path)
    import comfy.model_management

    if not comfy.model_management.is_device_cpu(comfy.model_management.get_torch_device()):
        pytest.skip("ComfyUI computes on another device here")
    return comfy.model_management


@pytest.fixture
def fast(mm, monkeypatch):
    """A CPU that multiplies bf16. fast(name, ...): what ComfyUI was started with."""
    monkeypatch.setattr("sanacog.kernels.processor.multiplies_bf16", lambda: True)
    return lambda *names: [monkeypatch.setattr(mm.args, name, True) for name in names]


def chosen(weight, dtype, supported):
    from sanacog.host.loading import compute_dtype, storage_and_compute

    storage, compute = storage_and_compute({"w": torch.zeros(4, 4, dtype=weight)}, dtype, supported)
    return storage, compute or storage, compute_dtype(supported)


@pytest.mark.parametrize("options, weight, dtype, supported, wanted", [
    ((), FP32, None, [BF16, FP32], (BF16, BF16, BF16)),
    ((), FP16, None, [BF16, FP16, FP32], (BF16, BF16, BF16)),
    ((), BF16, FP32, [BF16, FP32], (FP32, FP32, BF16)),
    ((), BF16, FP16, [FP16, BF16, FP32], (FP16, BF16, BF16)),
    ((), BF16, torch.float8_e4m3fn, [BF16, FP32], (torch.float8_e4m3fn, BF16, BF16)),
    ((), FP32, None, [FP32], (FP32, FP32, FP32)),
    (("fp32_unet",), BF16, None, [BF16, FP32], (FP32, FP32, FP32)),
    (("force_fp32",), BF16, None, [BF16, FP32], (FP32, FP32, FP32)),
    (("fp32_text_enc",), FP32, None, [BF16, FP32], (BF16, BF16, BF16)),
])
def test_a_model(fast, options, weight, dtype, supported, wanted):
    fast(*options)
    assert chosen(weight, dtype, supported) == wanted


def test_another_cpu(mm):
    assert chosen(BF16, None, [BF16, FP32]) == (FP32, FP32, FP32)


@pytest.mark.parametrize("options, in_bf16", [((), True), (("fp32_text_enc",), False), (("fp32_unet",), True)])
def test_a_text_encoder(fast, options, in_bf16):
    from sanacog.host.processor import multiply_in_bf16

    fast(*options)
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64))
    x = torch.randn(5, 64)
    before = network[0](x)
    multiply_in_bf16(network.to(BF16) if in_bf16 else network, torch.device("cpu"))
    got = network[0](x)
    assert got.dtype == FP32
    error = ((got - before).norm() / before.norm()).item()
    assert 1e-4 < error < 1e-2 if in_bf16 else error == 0


def test_attention_of_the_host(mm, monkeypatch):
    from comfy.ldm.modules import attention
    from sanacog.host.blocks import fastest_attention

    cpu = torch.device("cpu")
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_sub_quad)
    assert fastest_attention(cpu) is attention.attention_pytorch
    assert fastest_attention(torch.device("cuda")) is attention.attention_sub_quad
    monkeypatch.setattr(mm.args, "use_quad_cross_attention", True)
    assert fastest_attention(cpu) is attention.attention_sub_quad
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_split)  # by --use-split-cross-attention
    assert fastest_attention(cpu) is attention.attention_split
