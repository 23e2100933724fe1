"""Whether the models, as the host runs them, get to their kernels: the CPU passes for a device that has some, each
"kernel" is its eager form, and what comes out must be what came out before."""

from collections import Counter

import pytest
import torch

from sanacog.cogvideo_core.autoencoder import SpatialNorm3D
from sanacog.kernels import dispatch, glumbconv, linear_attention, rms_norm, rope, spatial_norm
from sanacog.sana_core.autoencoder import RMSNorm2d

from . import tiny, tiny_cogvideox
from .sana.sana_model import apart, host, model, noise, sample, vae, weights  # noqa: F401
from .test_lora import saved

EAGER = {"relu_linear_attention": linear_attention.eager, "gated_depthwise": glumbconv.eager, "rms_norm": rms_norm.eager,
         "rotate_pairs": rope.eager, "scale_shift_silu": spatial_norm.eager}


@pytest.fixture
def fuse(monkeypatch):
    """Call it to switch kernels on; returns the count of each that ran."""
    def on():
        calls = Counter()

        def run(name, *args):
            calls[name] += 1
            return EAGER[name](*args)

        monkeypatch.setattr(dispatch, "DEVICE", "cpu")
        monkeypatch.setattr(dispatch, "_available", lambda index: True)
        monkeypatch.setattr(dispatch, "run", run)
        return calls
    return on


@pytest.mark.parametrize("weight_dtype", ["default", "fp8_e4m3fn"])  # cast or not when a layer is called
def test_sana(host, weights, tmp_path, fuse, weight_dtype):
    stem = "transformer_blocks.0.ff.conv_depth"
    width = tiny.SANA.hidden * 2
    torch.manual_seed(0)
    change = saved(tmp_path / "lora.safetensors", {stem: (torch.randn(2, 1, 3, 3), torch.randn(width, 2, 1, 1))})
    from sanacog.host import lora
    patched, _ = lora.apply_lora(change, host.sana.load_sana(weights.sana, weight_dtype))
    plain = sample(host, host.sana.load_sana(weights.sana, weight_dtype), steps=1)
    want = sample(host, patched, steps=1)
    assert apart(want, plain) > 1e-3  # the LoRA of the depthwise layer matters

    calls = fuse()
    assert apart(sample(host, patched, steps=1), want) < 1e-5
    assert set(calls) == {"relu_linear_attention", "gated_depthwise"}
    assert len(set(calls.values())) == 1 and calls["gated_depthwise"] % tiny.SANA.num_layers == 0


@torch.inference_mode()
def test_dcae(vae, fuse):
    picture = torch.rand(2, 64, 96, 3, generator=torch.Generator().manual_seed(5))
    latent = vae.encode(picture)
    decoded = vae.decode(latent)
    calls = fuse()
    assert apart(vae.encode(picture), latent) < 1e-5 and apart(vae.decode(latent), decoded) < 1e-5
    # Every norm, so every picture on the way is channels-last.
    norms = sum(isinstance(module, RMSNorm2d) for module in vae.first_stage_model.modules())
    assert calls == {"rms_norm": norms, "gated_depthwise": 2, "relu_linear_attention": 4}


@torch.inference_mode()
def test_cogvideox(fuse):
    transformer, autoencoder = tiny_cogvideox.transformer(), tiny_cogvideox.autoencoder()
    torch.manual_seed(0)
    step = torch.randn(1, 16, 3, 6, 8), torch.tensor([500.0]), torch.randn(1, 4, tiny_cogvideox.TEXT_WIDTH)
    velocity, latent = transformer(*step), torch.randn(1, 16, 5, 4, 6)
    clip = autoencoder.decode(latent)
    calls = fuse()
    assert apart(transformer(*step), velocity) < 1e-5 and apart(autoencoder.decode(latent), clip) < 1e-5
    norms = sum(isinstance(module, SpatialNorm3D) for module in autoencoder.modules())
    assert calls == {"rotate_pairs": 2 * tiny_cogvideox.PARAMS.num_layers, "scale_shift_silu": 2 * norms}  # two chunks
