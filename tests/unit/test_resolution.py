"""The sizes that Sana was trained with, and the way from them to any other."""

import pytest
import torch

from sanacog.host.sana.resolution import ASPECT_RATIOS, BASES, fitted, resolution, sizes


@pytest.mark.parametrize("base", BASES)
def test_sizes_are_those_of_diffusers(base):
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha as alpha
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_sigma as sigma
    from diffusers.pipelines.sana import pipeline_sana

    table = {"512": alpha.ASPECT_RATIO_512_BIN, "1024": alpha.ASPECT_RATIO_1024_BIN,
             "2K": sigma.ASPECT_RATIO_2048_BIN, "4K": pipeline_sana.ASPECT_RATIO_4096_BIN}[base]
    assert sorted(sizes(base)) == sorted((int(width), int(height)) for height, width in table.values())


def test_named_ratios():
    assert resolution("1024", "1:1") == (1024, 1024)
    assert resolution("1024", "16:9") == (1344, 768)
    assert resolution("1024", "9:16") == (768, 1344)
    assert resolution("512", "4:1") == (1024, 256)
    assert resolution("4K", "1:1") == (4096, 4096)
    for base in BASES:
        for name in ASPECT_RATIOS:
            width, height = resolution(base, name)
            wanted = int(name.split(":")[0]) / int(name.split(":")[1])
            assert abs(width / height / wanted - 1) < 0.08, (base, name, width, height)


@pytest.mark.parametrize("base, ratio", [("8K", "1:1"), ("1024", "wide"), ("1024", "1:0"), ("1024", "-1:2"), ("1024", "")])
def test_unknown_is_refused(base, ratio):
    with pytest.raises(ValueError, match="base is|aspect_ratio is"):
        resolution(base, ratio)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("width, height", [(1000, 700), (700, 1000), (1920, 1080), (640, 640), (5000, 1000), (333, 1777)])
def test_wanted_size_takes_the_bin_of_diffusers(base, width, height):
    from diffusers.image_processor import PixArtImageProcessor

    bins = {f"{tall / wide:.2f}": (tall, wide) for wide, tall in sizes(base)}
    tall, wide = PixArtImageProcessor.classify_height_width_bin(height, width, bins)
    assert resolution(base, "1:1", width, height) == (wide, tall)


@pytest.mark.parametrize("width, height", [(1000, 0), (0, 700), (-5, 700)])
def test_half_a_wanted_size_is_refused(width, height):
    with pytest.raises(ValueError, match="both sides"):
        resolution("1024", "1:1", width, height)


@pytest.mark.parametrize("old, new", [((48, 64), (100, 90)), ((64, 48), (100, 90)), ((48, 64), (64, 48)), ((33, 47), (33, 90))])
def test_crop_to_size_is_that_of_diffusers(old, new):
    """Sizes as (width, height). Enlarged, the two are the same; a picture that shrinks is filtered here."""
    from diffusers.image_processor import PixArtImageProcessor

    pictures = torch.rand(2, old[1], old[0], 3, generator=torch.Generator().manual_seed(0))
    got = fitted(pictures, *new)
    want = PixArtImageProcessor.resize_and_crop_tensor(pictures.movedim(-1, 1), *new).movedim(1, -1)
    assert got.shape == want.shape == (2, new[1], new[0], 3)
    assert torch.allclose(got, want, atol=1e-5)


def test_shrinking_averages():
    lines = torch.zeros(1, 64, 64, 3)
    lines[:, :, ::4] = 1.0
    assert fitted(lines, 16, 16)[:, 4:-4, 4:-4].std() < 0.05
    assert fitted(lines, 64, 64) is lines


def test_every_size_comes_out_exactly():
    for width, height in ((1000, 700), (49, 49), (1, 1), (999, 3)):
        for old in ((49, 49), (1216, 832), (7, 1000)):
            assert fitted(torch.zeros(1, old[1], old[0], 3), width, height).shape == (1, height, width, 3)


@pytest.mark.parametrize("shape, size", [((64, 64, 3), (32, 32)), ((0, 64, 64, 3), (32, 32)), ((1, 64, 64, 3), (0, 32))])
def test_no_picture_and_no_size_are_refused(shape, size):
    with pytest.raises(ValueError, match="no picture|at least 1"):
        fitted(torch.zeros(shape), *size)
