"""The CogVideoX autoencoder against diffusers' with the same weights, fp32, tiny widths."""

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch.utils.flop_counter import FlopCounterMode

from sanacog.cogvideo_core.autoencoder import CogVideoVAE, Tiles, decoded_length, encoded_length
from sanacog.cogvideo_core.config import CogVideoVAEParams

TINY = dict(block_out_channels=(8, 16, 16, 32), layers_per_block=1, latent_channels=4, norm_num_groups=4)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.fixture(scope="module")
def pair():
    """Our autoencoder and diffusers' with the same random weights; norms and biases random too."""
    theirs = AutoencoderKLCogVideoX(**TINY).eval()
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.randn(value.shape, generator=generator) * (0.5 if value.ndim < 2 else value[0].numel() ** -0.5)
             for key, value in theirs.state_dict().items()}
    theirs.load_state_dict(state)
    ours = CogVideoVAE(CogVideoVAEParams(**TINY)).eval()
    ours.load_state_dict(state)
    return ours, theirs


def clip(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 6, 8, 9, 10, 11, 16, 17, 49])
@torch.no_grad()
def test_encode(pair, frames):
    ours, theirs = pair
    x = clip(1, 3, frames, 16, 24)
    mean, logvar = ours.moments(x)
    expected = theirs.encode(x).latent_dist
    assert mean.shape[2] == encoded_length(frames)
    assert relative(mean, expected.mean) < 1e-5 and relative(logvar, expected.logvar) < 1e-5
    assert torch.equal(ours.encode(x), mean)


@pytest.mark.parametrize("latents", [1, 2, 3, 4, 5, 13, 22])
@torch.no_grad()
def test_decode(pair, latents):
    """1, 8, 9, 16, 17, 49 and 88 frames."""
    ours, theirs = pair
    z = torch.randn(1, 4, latents, 2, 3, generator=torch.Generator().manual_seed(1))
    frames = ours.decode(z)
    assert frames.shape == (1, 3, decoded_length(latents), 16, 24)
    assert relative(frames, theirs.decode(z).sample) < 1e-5


@pytest.mark.parametrize("frames, share", [(1, 0.45), (9, 0.93)])
@torch.no_grad()
def test_copies_before_the_first_frame_cost_nothing(pair, frames, share):
    """diffusers convolves the first frame three times in each layer; those in space alone are the same for both."""
    def work(call):
        with FlopCounterMode(display=False) as counted:
            call()
        return counted.get_total_flops()

    ours, theirs = pair
    shown, latent = clip(1, 3, frames, 32, 32), clip(1, 4, (frames + 3) // 4, 4, 4)
    assert work(lambda: ours.encode(shown)) < share * work(lambda: theirs.encode(shown))
    assert work(lambda: ours.decode(latent)) < share * work(lambda: theirs.decode(latent))


@torch.no_grad()
def test_batch_and_odd_sides(pair):
    ours, theirs = pair
    x = clip(2, 3, 9, 29, 43)
    assert relative(ours.encode(x), theirs.encode(x).latent_dist.mean) < 1e-5
    z = torch.randn(2, 4, 3, 5, 3, generator=torch.Generator().manual_seed(1))
    assert relative(ours.decode(z), theirs.decode(z).sample) < 1e-5


# Latent sizes: more than one tile each way, an end shorter than the overlap, one way only, exactly one tile.
@pytest.mark.parametrize("size", [(7, 11), (4, 17), (13, 4), (8, 8), (4, 6)])
@torch.no_grad()
def test_tiles(pair, size):
    ours, theirs = pair
    theirs.enable_tiling(32, 48, 0.25, 1 / 3)
    tiles = Tiles(height=4, width=6, overlap_height=1, overlap_width=2)
    try:
        x, z = clip(1, 3, 9, 8 * size[0], 8 * size[1]), clip(1, 4, 3, *size)
        assert relative(ours.encode(x, tiles), theirs.encode(x).latent_dist.mean) < 1e-5
        assert relative(ours.decode(z, tiles), theirs.decode(z).sample) < 1e-5
    finally:
        theirs.use_tiling = False


def test_default_tiles_are_those_of_diffusers():
    theirs = AutoencoderKLCogVideoX(**TINY | dict(block_out_channels=(4, 4, 4, 4)))
    tiles = Tiles()
    assert (theirs.tile_latent_min_height, theirs.tile_latent_min_width) == (tiles.height, tiles.width)
    assert int(tiles.height * (1 - theirs.tile_overlap_factor_height)) == tiles.height - tiles.overlap_height
    assert int(tiles.width * (1 - theirs.tile_overlap_factor_width)) == tiles.width - tiles.overlap_width


def test_gradients(pair):
    ours, theirs = pair
    x = clip(1, 3, 9, 8, 8)
    ours.decode(ours.encode(x)).square().sum().backward()
    theirs.decode(theirs.encode(x).latent_dist.mean).sample.square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        # Half of the last layer of the encoder makes the variance, which is not used here.
        assert (parameter.grad - expected[name].grad).norm() <= 1e-4 * expected[name].grad.norm() + 1e-6, name
