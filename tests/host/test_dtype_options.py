"""The host's options for number types: the model's own list wins over fp16, fp32 wins over the list."""

import dataclasses
import logging

import pytest
import torch

from . import tiny, tiny_cogvideox

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture(scope="module")
def mm(comfyui_path):
    tiny.import_host(comfyui_path)
    import comfy.model_management

    return comfy.model_management


@pytest.fixture
def gpu(mm, monkeypatch):
    """The host's rules as on a GPU that has both 16-bit types. options(name, ...): what ComfyUI was started with."""
    monkeypatch.setattr(mm, "should_use_fp16", lambda *args, **kwargs: True)
    monkeypatch.setattr(mm, "should_use_bf16", lambda *args, **kwargs: True)
    return lambda *names: [monkeypatch.setattr(mm.args, name, True) for name in names]


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records if "was told to compute" in record.getMessage()]


def chosen(weight, dtype, supported):
    from sanacog.host.loading import storage_and_compute

    storage, compute = storage_and_compute({"w": torch.zeros(4, 4, dtype=weight)}, dtype, supported)
    return storage, compute or storage


@pytest.mark.parametrize("options, weight, dtype, supported, wanted", [
    ((), BF16, None, [BF16, FP32], (BF16, BF16)),
    (("fp16_unet",), BF16, None, [BF16, FP32], (BF16, BF16)),
    (("fp16_unet",), FP16, FP16, [BF16, FP32], (FP16, BF16)),
    (("force_fp16",), FP16, FP16, [BF16, FP32], (FP16, BF16)),
    (("force_fp16",), FP16, None, [BF16, FP32], (BF16, BF16)),
    (("fp16_unet",), BF16, None, [BF16, FP16, FP32], (FP16, FP16)),
    (("fp32_unet",), BF16, None, [BF16, FP32], (FP32, FP32)),
    (("fp32_unet",), BF16, FP16, [BF16, FP32], (FP16, FP32)),
    (("bf16_unet",), FP16, None, [FP16, BF16, FP32], (BF16, BF16)),
    (("fp8_e4m3fn_unet",), BF16, None, [BF16, FP32], (torch.float8_e4m3fn, BF16)),
])
def test_model(gpu, warnings, options, weight, dtype, supported, wanted):
    gpu(*options)
    assert chosen(weight, dtype, supported) == wanted
    assert len(warnings()) == (options == ("fp16_unet",) and FP16 not in supported)


@pytest.mark.parametrize("options, wanted", [((), BF16), (("fp16_unet",), BF16), (("fp32_unet",), FP32)])
def test_quantised_model(gpu, mm, options, wanted):
    from sanacog.host.loading import compute_dtype

    gpu(*options)
    assert compute_dtype([BF16, FP32]) == wanted


def computing(model):
    return model.manual_cast_dtype or model.get_dtype()


def test_loaded_models_of_both_families(gpu, tmp_path, warnings):
    from sanacog.host.cogvideox.model import load_cogvideox
    from sanacog.host.sana.control import load_sana_controlnet
    from sanacog.host.sana.model import load_sana

    gpu("fp16_unet")
    clamped = dataclasses.replace(tiny.SANA, clamp_fp16=True)
    assert computing(load_sana(tiny.save_sana(tmp_path / "bf16.safetensors")).model) == BF16
    assert len(warnings()) == 1 and "float16" in warnings()[0] and "bfloat16" in warnings()[0]
    assert computing(load_sana(tiny.save_sana(tmp_path / "fp16.safetensors", clamped)).model) == FP16
    control = load_sana_controlnet(tiny.save_controlnet(tmp_path / "control.safetensors"))
    assert (control.manual_cast_dtype or control.control_model.dtype) == BF16
    assert len(warnings()) == 2
    for rotary, wanted in ((True, BF16), (False, FP16)):  # 5B, 2B
        params = dataclasses.replace(tiny_cogvideox.PARAMS, use_rotary_positional_embeddings=rotary)
        path = tiny_cogvideox.save_transformer(tmp_path / f"cogvideox_{rotary}.safetensors", params)
        assert computing(load_cogvideox(path).model) == wanted


@pytest.mark.parametrize("option, allowed, wanted, lines", [
    (None, [BF16, FP32], BF16, 0), ("fp16_vae", [BF16, FP32], BF16, 1), ("fp16_vae", [BF16, FP16, FP32], FP16, 0),
    ("fp32_vae", [BF16, FP32], FP32, 0), ("bf16_vae", [FP16, FP32], FP16, 1)])
def test_vae(gpu, warnings, option, allowed, wanted, lines):
    from sanacog.host.native_vae import working_dtype

    if option:
        gpu(option)
    assert working_dtype(torch.device("cpu"), allowed) == wanted
    assert len(warnings()) == lines


def test_loaded_dcae(gpu, tmp_path, warnings):
    from sanacog.host.sana.vae import load_dcae

    gpu("fp16_vae")
    vae = load_dcae(tiny.save_dcae(tmp_path / "dcae.safetensors"))
    assert vae.vae_dtype == BF16 and {p.dtype for p in vae.first_stage_model.parameters()} == {BF16} and len(warnings()) == 1


@pytest.mark.parametrize("option", ["fp16_text_enc", "fp32_text_enc", None])
def test_text_encoder_computes_in_fp32_whatever_the_option(gpu, mm, tmp_path, option):
    from sanacog.host.sana.text import encode_prompt, load_text_encoder

    path = tiny.save_gemma(tmp_path / "gemma.safetensors")
    plain = encode_prompt(load_text_encoder(path), "a red circle", True)[0][0]
    if option:
        gpu(option)
    clip = load_text_encoder(path)
    states = encode_prompt(clip, "a red circle", True)[0][0]
    assert states.dtype == FP32 and torch.equal(states, plain)
