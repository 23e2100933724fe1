"""What the VAE tells the host of its memory, against the tensors that are alive. On the meta device: no weights."""

import pytest
import torch

from .. import tiny, tiny_cogvideox
from ..alive import peak

HEIGHT, WIDTH = 240, 360  # beside which the sums of kernels that the start of a clip takes are small


@pytest.fixture(scope="module")
def vae(comfyui_path):
    tiny.import_host(comfyui_path)
    from sanacog.host.cogvideox import vae as cogvideox_vae

    return cogvideox_vae


@pytest.fixture(scope="module")
def released(vae):
    with torch.device("meta"):
        return vae.CogVideoVAE().eval()


# 13 and 21 frames have a first chunk of 13, an even number of latents chunks of 8.
@pytest.mark.parametrize("frames", [1, 5, 9, 13, 17, 21])
def test_encoding(vae, released, frames):
    shape = (1, 3, frames, HEIGHT, WIDTH)
    network = peak(released.encode, torch.empty(shape, device="meta"))
    clip = 3 * frames * HEIGHT * WIDTH * 4
    assert 0.75 < (network + clip) / vae.encode_bytes(released.params, shape, 4) < 1.05


@pytest.mark.parametrize("latents", [1, 2, 3, 4, 5])
def test_decoding(vae, released, latents):
    shape = (1, 16, latents, HEIGHT // 8, WIDTH // 8)
    network = peak(released.decode, torch.empty(shape, device="meta"))
    assert 0.75 < network / vae.decode_bytes(released.params, shape, 4) < 1.05


def test_tiles(vae, released):
    tiles = vae.Tiles(15, 23, 3, 3)
    shape = (1, 16, 3, 30, 45)
    network = peak(released.decode, torch.empty(shape, device="meta"), tiles)
    assert 0.75 < network / vae.decode_bytes(released.params, shape, 4, tiles) < 1.1
    assert network < 0.5 * peak(released.decode, torch.empty(shape, device="meta"))


def test_what_the_host_is_told(vae, released, tmp_path):
    """The count above for the whole frame, and when decoding the frames once more, while they are joined."""
    params = released.params
    assert 7.5 < vae.decode_bytes(params, (1, 16, 13, 60, 90), 2) / 2**30 < 7.9
    assert 5.2 < vae.encode_bytes(params, (1, 3, 49, 480, 720), 2) / 2**30 < 5.6
    native = vae.load_cogvideox_vae(tiny_cogvideox.save_autoencoder(tmp_path / "vae.safetensors"))
    params, shape, frames = tiny_cogvideox.VAE, (2, 16, 3, 8, 9), 3 * 9 * 64 * 72 * 2
    assert native.memory_used_decode(shape, torch.bfloat16) == vae.decode_bytes(params, shape, 2) + frames
    assert native.memory_used_encode((2, 3, 9, 64, 72), torch.bfloat16) == vae.encode_bytes(params, (1, 3, 9, 64, 72), 2)
