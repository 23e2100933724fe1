"""DC-AE against diffusers' AutoencoderDC with the same random weights."""

from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F

import diffusers
from sanacog.kernels.dcae import upsample_conv
from sanacog.sana_core.autoencoder import AutoencoderDC, DCAEParams


def narrow(**changes):
    """The real structure at reduced width, depth and number of stages where `changes` say so."""
    return DCAEParams(**dict(encoder_block_out_channels=(8, 16, 32, 32, 64, 64),
                             decoder_block_out_channels=(8, 16, 32, 32, 64, 64)) | changes)


def stages(block_types, scales, depths, widths, **changes):
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in dict(
        block_types=block_types, qkv_multiscales=scales, layers_per_block=depths, block_out_channels=widths).items()}
    return DCAEParams(**sides | changes)


CONFIGS = {
    "sana": narrow(),
    "lite": narrow(decoder_block_types="ResBlock", decoder_layers_per_block=(0, 3, 5, 4, 4, 4),
                   decoder_qkv_multiscales=((),) * 6, upsample_block_type="pixel_shuffle", decoder_conv_act_fn="silu"),
    "tiny": stages(["ResBlock"] * 3 + ["EfficientViTBlock"] * 3, [[], [], [], [5], [5], [5]], (0, 1, 1, 1, 1, 1),
                   (8, 8, 16, 32, 32, 32)),
    "pixel": stages(["ResBlock", "EfficientViTBlock", "EfficientViTBlock"], [[], [3, 5], []], (1, 1, 1), (8, 32, 32),
                    attention_head_dim=16, downsample_block_type="pixel_unshuffle", upsample_block_type="pixel_shuffle",
                    decoder_act_fns="relu", encoder_out_shortcut=False, decoder_in_shortcut=False),
}


def pair(params, seed=0):
    """(ours, diffusers') with the same weights of a size that keeps every path in play."""
    theirs = diffusers.AutoencoderDC(**asdict(params)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise / p[0].numel() ** 0.5 if p.ndim > 1 else noise * 0.1 + name.endswith("weight"))
    ours = AutoencoderDC(params).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def error(ours, theirs):
    """Relative L2."""
    return ((ours - theirs).float().norm() / theirs.float().norm()).item()


@pytest.mark.parametrize("name", CONFIGS)
# Latents of 2 x 3 pixels lie below the 32 tokens where diffusers' attention turns quadratic, of 7 x 5 above.
@pytest.mark.parametrize("height, width", [(64, 96), (224, 160)])
@torch.no_grad()
def test_like_diffusers(name, height, width):
    ours, theirs = pair(CONFIGS[name])
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    z = theirs.encode(x).latent
    assert error(ours.encode(x), z) < 1e-5
    y = theirs.decode(z).sample
    assert error(ours.decode(z), y) < 1e-5
    assert ours.encode(x).shape == (2, 32, height // ours.params.compression, width // ours.params.compression)
    assert ours.decode(z).shape == x.shape


@torch.no_grad()
def test_bf16():
    ours, theirs = pair(CONFIGS["sana"])
    z = torch.randn(1, 32, 7, 5, generator=torch.Generator().manual_seed(2))
    exact, x = theirs.decode(z).sample, torch.rand(1, 3, 160, 128) * 2 - 1
    latent = theirs.encode(x).latent
    ours, theirs = ours.bfloat16(), theirs.bfloat16()
    y = ours.decode(z.bfloat16())
    assert y.dtype == torch.bfloat16
    assert error(y, exact) < 2e-2
    # Rounding adds up over the layers: ours must not stray further than diffusers' own bf16.
    assert error(ours.encode(x.bfloat16()), latent) < max(2e-2, error(theirs.encode(x.bfloat16()).latent, latent))


def test_gradients():
    """Training sees the same function: every parameter's gradient."""
    ours, theirs = pair(CONFIGS["tiny"])
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    ours(x).square().mean().backward()
    theirs(x).sample.square().mean().backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters()):
        assert error(a.grad, b.grad) < 1e-4, name


def test_upsample_conv():
    """Four small convolutions in place of one on the enlarged picture, and their gradients."""
    generator = torch.Generator().manual_seed(4)
    x, weight, bias, g = (torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
                          for shape in ((2, 4, 3, 5), (6, 4, 3, 3), (6,), (2, 6, 6, 10)))
    large = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
    ours = upsample_conv(x, weight, bias)
    assert torch.allclose(ours, large, rtol=0, atol=1e-12)
    for a, b in zip(torch.autograd.grad(ours, (x, weight, bias), g), torch.autograd.grad(large, (x, weight, bias), g)):
        assert torch.allclose(a, b, rtol=0, atol=1e-11)


def test_unsuitable_heads():
    with pytest.raises(ValueError, match="48 channels.*heads of 32"):
        AutoencoderDC(narrow(encoder_block_out_channels=(8, 16, 32, 48, 96, 192)), device="meta")
