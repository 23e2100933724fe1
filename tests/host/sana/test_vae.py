"""DC-AE as the host's VAE, on random tiny weights: the same numbers as the bare core."""

import pytest
import torch

from .. import tiny
from .sana_model import apart, host, noise, vae, weights  # noqa: F401


def test_vae_equals_the_core(vae):
    core = tiny.dcae()
    picture = torch.rand(2, 64, 96, 3, generator=torch.Generator().manual_seed(5))
    latent = vae.encode(picture)
    assert latent.shape == (2, 32, 2, 3)
    assert apart(latent, core.encode(picture.movedim(-1, 1) * 2 - 1)) < 1e-5
    decoded = vae.decode(latent)
    wanted = ((core.decode(latent) + 1) / 2).clamp(0, 1).movedim(1, -1)
    assert decoded.shape == (2, 64, 96, 3)
    assert apart(decoded, wanted) < 1e-5


@pytest.mark.parametrize("layout", ["efficientvit", "extramodels"])
def test_files_in_other_layouts(host, vae, layout, tmp_path):
    other = host.vae.load_dcae(tiny.save_dcae(tmp_path / "dcae.safetensors", layout))
    latent = torch.randn(1, 32, 2, 3, generator=torch.Generator().manual_seed(6))
    assert torch.equal(other.decode(latent), vae.decode(latent))


def test_process_output_is_in_place_and_returned(vae):
    picture = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])
    out = vae.process_output(picture)
    assert out is picture and picture.tolist() == [0, 0, 0.5, 1, 1]


def test_odd_and_transparent_pictures_are_cropped(vae):
    picture = torch.rand(1, 70, 100, 4)
    wanted = vae.encode(picture[:, 3:67, 2:98, :3])
    assert torch.equal(vae.encode(picture), wanted)
    assert torch.equal(vae.encode_tiled(picture, tile_x=512, tile_y=512, overlap=64), wanted)


def test_latents_of_another_model_are_not_decoded(vae):
    for z, message in ((torch.zeros(1, 4, 8, 8), "another model"), (torch.full((1, 32, 2, 2), float("nan")), "NaN"),
                       (torch.zeros(1, 32, 0, 2), "empty")):
        for decode in (vae.decode, vae.decode_tiled):
            with pytest.raises(ValueError, match=message):
                decode(z)
    for shape in ((1, 20, 64, 3), (0, 64, 64, 3), (1, 64, 64, 1), (64, 64, 3)):
        for encode in (vae.encode, vae.encode_tiled):
            with pytest.raises(ValueError, match="at least 32 x 32"):
                encode(torch.rand(shape))
