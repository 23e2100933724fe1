"""DC-AE in pieces that equal the whole."""

import pytest
import torch

from sanacog.sana_core import exact_tiles
from sanacog.sana_core.autoencoder import AutoencoderDC, DCAEParams

SANA = DCAEParams(
    encoder_block_out_channels=(8, 8, 16, 32, 32, 32), decoder_block_out_channels=(8, 8, 16, 32, 32, 32),
    encoder_layers_per_block=(1, 1, 2, 1, 1, 1), decoder_layers_per_block=(2, 1, 2, 1, 1, 1), attention_head_dim=16)
KINDS = {
    "Sana's": SANA,
    "pixels shuffled": DCAEParams(**{**SANA.__dict__, "downsample_block_type": "pixel_unshuffle", "upsample_block_type": "pixel_shuffle"}),
    "no first stage": DCAEParams(**{**SANA.__dict__, "encoder_layers_per_block": (0, 1, 1, 1, 1, 1),
                                    "decoder_layers_per_block": (0, 1, 1, 1, 1, 1)}),
}


def network(params):
    torch.manual_seed(0)
    model = AutoencoderDC(params).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.normal_(std=0.5 if weight.ndim < 2 else weight[0].numel() ** -0.5)
    return model


def apart(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture
def few_rows(monkeypatch):
    """Attention stages in strips of a row or a few."""
    monkeypatch.setattr(exact_tiles, "ROWS_BYTES", 40_000)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("height, width, tile", [(9, 7, 64), (9, 7, 96), (3, 10, 128), (2, 2, 64)])
def test_decode(few_rows, kind, height, width, tile):
    model = network(KINDS[kind])
    z = torch.randn(2, 32, height, width, generator=torch.Generator().manual_seed(1))
    wanted = model.decode(z)
    assert apart(model.decode_exactly(z, torch.full_like(wanted, float("nan")), tile), wanted) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("height, width, tile", [(9, 7, 64), (9, 7, 96), (3, 10, 128), (2, 2, 64)])
def test_encode(few_rows, kind, height, width, tile):
    model = network(KINDS[kind])
    x = torch.rand(2, 3, 32 * height, 32 * width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    wanted = model.encode(x)
    assert apart(model.encode_exactly(x, torch.full_like(wanted, float("nan")), tile), wanted) < 1e-5


def test_the_margin_is_needed(few_rows, monkeypatch):
    model = network(SANA)
    z = torch.randn(1, 32, 6, 6, generator=torch.Generator().manual_seed(1))
    wanted = model.decode(z)
    monkeypatch.setattr(exact_tiles.Step, "reach", 0)
    assert apart(model.decode_exactly(z, torch.empty_like(wanted), 64), wanted) > 1e-3


def test_attention_needs_the_whole_picture(monkeypatch):
    """Strips that each attend to themselves are another picture."""
    model = network(SANA)
    block = model.decoder.up_blocks[5][0]
    x = torch.randn(1, 32, 12, 5, generator=torch.Generator().manual_seed(1))
    wanted = block(x)
    assert apart(exact_tiles.attention_in_rows(block.attn, x, 5), block.attn(x)) < 1e-6
    assert apart(torch.cat([block(part) for part in x.split(6, 2)], 2), wanted) > 1e-2


def test_memory_is_that_of_a_tile_and_of_the_attention_stages():
    from ..host.alive import peak

    model = network(DCAEParams(**{**SANA.__dict__, "decoder_block_out_channels": (32, 32, 32, 32, 32, 32)}))
    z = torch.randn(1, 32, 24, 24)
    out = torch.empty(1, 3, 768, 768)
    whole = peak(model.decode, z)
    tiled = peak(lambda z: model.decode_exactly(z, out, 128), z)
    assert tiled < whole / 8
