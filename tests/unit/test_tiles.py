"""DC-AE in tiles: where they lie, how they are blended, and how far the result is from the whole."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from sanacog.headless.installation import ROOT
from sanacog.sana_core.autoencoder import AutoencoderDC, DCAEParams
from sanacog.sana_core.tiles import Tiles, blend, shares, starts
from sanacog.training.embedded import autoencoder as training
from sanacog.evaluation.drawn import shapes

SIZES = [(length, tile, overlap) for tile in (1, 2, 5, 8, 32) for overlap in range(0, tile // 2 + 1, max(1, tile // 8))
         for length in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 62, 63, 128, 200)]


def test_tiles_cover_a_side():
    for length, tile, overlap in SIZES:
        begins = starts(length, tile, overlap)
        assert begins[0] == 0 and begins[-1] + tile == max(length, tile), (length, tile, overlap)
        assert all(overlap <= a + tile - b < tile for a, b in zip(begins, begins[1:])), (length, tile, overlap)
        # One fewer would not reach.
        assert len(begins) == 1 or (len(begins) - 1) * (tile - overlap) + overlap < length, (length, tile, overlap)


def test_shares_add_up_to_one():
    for length, tile, overlap in SIZES:
        total = torch.zeros(length * 3)
        for start, share in shares(length, tile, overlap, 3):
            assert share.min() > 0 and len(share) == 3 * min(tile, length)
            total[3 * start :][: len(share)] += share
        assert torch.allclose(total, torch.ones(length * 3), atol=1e-6), (length, tile, overlap)


def test_counts():
    assert Tiles().count(32, 32) == 1 and Tiles().count(33, 7) == 2
    assert Tiles().count(128, 128) == 25  # 4096 x 4096 px
    assert Tiles(8, 4, 1).count(15, 10) == 2 * 3


@pytest.mark.parametrize("height, width, overlap", [(0, 4, 0), (4, 4, 3), (4, 9, 3), (4, 4, -1)])
def test_impossible_tiles_are_refused(height, width, overlap):
    with pytest.raises(ValueError, match="at most half"):
        Tiles(height, width, overlap)


@pytest.mark.parametrize("tiles", [Tiles(4, 4, 1), Tiles(3, 5, 0), Tiles(6, 4, 2), Tiles(40, 3, 1)])
def test_what_does_not_look_around_is_unchanged(tiles):
    z = torch.randn(2, 3, 11, 9, generator=torch.Generator().manual_seed(0))
    picture = F.interpolate(z, scale_factor=4, mode="nearest")
    out = torch.full_like(picture, math.nan)
    assert blend(lambda tile: F.interpolate(tile, scale_factor=4, mode="nearest"), z, out, tiles) is out
    assert torch.allclose(out, picture, atol=1e-6)
    small = torch.full_like(z, math.nan)
    assert torch.allclose(blend(lambda tile: F.avg_pool2d(tile, 4), picture, small, tiles), z, atol=1e-6)


def test_one_tile_at_a_time():
    seen = []

    def network(tile):
        seen.append(tuple(tile.shape))
        return tile.bfloat16()

    out = blend(network, torch.randn(2, 3, 20, 12), torch.empty(2, 3, 20, 12, dtype=torch.float16), Tiles(8, 16, 2))
    assert out.dtype == torch.float16 and seen == [(1, 3, 8, 12)] * 6


def test_tiles_that_differ_fade_into_each_other():
    """Each tile comes out with another brightness: no two neighbouring pixels may show it."""
    levels = iter(range(100))
    out = blend(lambda tile: torch.full_like(tile, next(levels)).repeat_interleave(8, 2).repeat_interleave(8, 3),
                torch.zeros(1, 1, 40, 40), torch.empty(1, 1, 320, 320), Tiles(16, 16, 4))
    assert Tiles(16, 16, 4).count(40, 40) == 9
    columns, rows = (out.diff(dim=dim).abs().max() for dim in (3, 2))
    assert columns <= 1.01 / 32 and rows <= 3.01 / 32  # steps of 1 and of 3 over at least 4 latents


# The networks

NARROW = DCAEParams(encoder_block_out_channels=(8, 16, 32, 32, 32, 32), decoder_block_out_channels=(8, 16, 32, 32, 32, 32))


@torch.no_grad()
def test_autoencoder_in_tiles():
    torch.manual_seed(1)
    model = AutoencoderDC(NARROW).eval()
    z = torch.randn(2, 32, 6, 4)
    assert torch.equal(model.decode(z, Tiles(6, 4, 2)), torch.cat([model.decode(z[:1]), model.decode(z[1:])]))
    tiled = model.decode(z, Tiles(4, 4, 2))
    assert tiled.shape == (2, 3, 192, 128) and tiled.dtype == torch.float32
    # Rows that one tile alone has are that tile's.
    assert torch.allclose(tiled[:1, :, :64], model.decode(z[:1, :, :4])[:, :, :64], atol=1e-6)
    assert torch.allclose(tiled[:1, :, 128:], model.decode(z[:1, :, 2:])[:, :, 64:], atol=1e-6)
    x = torch.rand(2, 3, 192, 128) * 2 - 1
    assert torch.allclose(model.encode(x, Tiles(6, 4, 2)), model.encode(x), atol=1e-5)
    latent = model.encode(x, Tiles(4, 4, 2))
    assert latent.shape == (2, 32, 6, 4)
    assert torch.allclose(latent[1:, :, :2], model.encode(x[1:, :, :128])[:, :, :2], atol=1e-6)


def picture_with_flat_areas(side):
    """Three drawn scenes far apart on one plain background: (1, 3, side, side) in [-1, 1]."""
    generator = torch.Generator().manual_seed(3)
    scenes = shapes.sample_scenes(40, generator)
    drawn = shapes.draw(scenes, generator)
    drawn = drawn[scenes[:, shapes.BACKGROUND] == scenes[0, shapes.BACKGROUND]]
    picture = drawn[:1, :, :1, :1].repeat(1, 1, side, side)
    for scene, (top, left) in zip(drawn, ((64, 96), (side - 400, side // 2 - 100), (side // 2 - 64, side - 330))):
        picture[0, :, top : top + 256, left : left + 256] = scene
    return picture


@torch.no_grad()
def test_no_seam_with_the_trained_autoencoder():
    """Levels of 255, on flat areas, where seams are seen: tiles side by side show steps of seven, blended ones none."""
    model = training.build().eval()
    model.load_state_dict(load_file(ROOT / "models" / "vae" / "sanacog_tiny_dcae.safetensors"))
    x = picture_with_flat_areas(1024)
    z = model.encode(x)
    whole = model.decode(z)

    def quality(tiles):
        difference = (model.decode(z, tiles) - whole) * 127.5
        step = max(difference.diff(dim=3).abs().mean((0, 1, 2)).max(), difference.diff(dim=2).abs().mean((0, 1, 3)).max())
        return 10 * math.log10(255**2 / difference.square().mean()), step

    decibels, step = quality(Tiles(16, 16, 2))
    assert decibels > 48 and step < 2
    decibels, step = quality(Tiles(16, 16, 0))
    assert decibels < 45 and step > 4
    assert ((model.encode(x, Tiles(16, 16, 2)) - z).norm() / z.norm()) < 0.05
