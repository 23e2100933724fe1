"""Convolutions in strips: the same as in one piece, and no piece beyond what 32 bits reach."""

import pytest
import torch
import torch.nn.functional as F

from sanacog.kernels import large_conv
from sanacog.kernels.dcae import upsample_conv
from sanacog.sana_core.autoencoder import AutoencoderDC, DCAEParams

SHAPES = {  # channels in and out, kernel, stride, padding, groups
    "3x3": (6, 8, 3, 1, 1, 1), "3x3 stride 2": (6, 8, 3, 2, 1, 1), "1x1": (6, 8, 1, 1, 0, 1),
    "depthwise 5x5": (6, 6, 5, 1, 2, 6), "3x3 stride 2, unpadded": (6, 8, 3, 2, 0, 1), "2x2 padded": (6, 8, 2, 1, 1, 1),
}


@pytest.fixture
def pieces(monkeypatch):
    """The largest tensor of every convolution that torch is asked for."""
    seen, real = [], F.conv2d

    def watched(x, *args):
        out = real(x, *args)
        seen.append(max(x.numel(), out.numel()))
        return out

    monkeypatch.setattr(large_conv.F, "conv2d", watched)
    return seen


def drawn(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("height", [1, 2, 13, 16])
@pytest.mark.parametrize("kind", SHAPES)
def test_strips_equal_the_whole(kind, height, pieces, monkeypatch):
    wide, out, kernel, stride, padding, groups = SHAPES[kind]
    if height + 2 * padding < kernel:
        pytest.skip("nothing comes out")
    x, weight, bias = drawn(2, wide, height, 9), drawn(out, wide // groups, kernel, kernel), drawn(out, seed=1)
    for b in (bias, None):
        want = F.conv2d(x, weight, b, stride, padding, 1, groups)
        arguments = x, weight, b, (stride, stride), (padding, padding), groups
        pieces.clear()
        assert torch.equal(large_conv.conv2d(*arguments), want) and len(pieces) == 1
        pieces.clear()
        with monkeypatch.context() as patch:
            patch.setattr(large_conv, "LIMIT", 700)  # a row is 108 numbers and more
            got = large_conv.conv2d(*arguments)
        assert got.shape == want.shape and torch.allclose(got, want, rtol=0, atol=1e-12)
        if height > 2:
            assert len(pieces) > 1


def test_upsampling_in_strips(monkeypatch):
    x, weight, bias = drawn(1, 4, 7, 5), drawn(6, 4, 3, 3), drawn(6, seed=1)
    want = upsample_conv(x, weight, bias)
    monkeypatch.setattr(large_conv, "LIMIT", 200)
    assert torch.allclose(upsample_conv(x, weight, bias), want, rtol=0, atol=1e-12)
    large = F.interpolate(x, scale_factor=2, mode="nearest")
    assert torch.allclose(large_conv.conv2d(large, weight, bias, padding=(1, 1)), want, rtol=0, atol=1e-12)


def test_gradients_in_strips(monkeypatch):
    x, weight, bias = (t.requires_grad_() for t in (drawn(1, 4, 7, 5), drawn(6, 4, 3, 3), drawn(6, seed=1)))
    wanted = torch.autograd.grad(F.conv2d(x, weight, bias, 2, 1).square().sum(), (x, weight, bias))
    monkeypatch.setattr(large_conv, "LIMIT", 60)
    got = torch.autograd.grad(large_conv.conv2d(x, weight, bias, (2, 2), (1, 1)).square().sum(), (x, weight, bias))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-11) for a, b in zip(got, wanted))


@pytest.mark.parametrize("sampling", ["conv", "pixel"])
@torch.no_grad()
def test_whole_autoencoder_in_strips(sampling, pieces, monkeypatch):
    torch.manual_seed(0)
    narrow = dict(encoder_block_out_channels=(8, 16, 32, 32, 32, 32), decoder_block_out_channels=(8, 16, 32, 32, 32, 32))
    if sampling == "pixel":
        narrow |= dict(downsample_block_type="pixel_unshuffle", upsample_block_type="pixel_shuffle")
    model = AutoencoderDC(DCAEParams(**narrow)).eval()
    x, z = torch.randn(1, 3, 96, 64), torch.randn(1, 32, 3, 2)
    whole, count = (model.encode(x), model.decode(z)), len(pieces)
    monkeypatch.setattr(large_conv, "LIMIT", 12_000)
    pieces.clear()
    for got, want in zip((model.encode(x), model.decode(z)), whole):
        assert (got - want).norm() / want.norm() < 1e-5
    assert len(pieces) > count and max(pieces) <= 12_000


@pytest.mark.parametrize("pixels", [4096, 8192])
@torch.no_grad()
def test_released_autoencoder_stays_within_32_bits(pixels, pieces):
    """At its real size, without data: what is asked of torch's convolutions in one call."""
    model = AutoencoderDC(DCAEParams(), device="meta").eval()
    model.decode(torch.empty(1, 32, pixels // 32, pixels // 32, device="meta"))
    model.encode(torch.empty(1, 3, pixels, pixels, device="meta"))
    assert 2**28 < max(pieces) < 2**31
