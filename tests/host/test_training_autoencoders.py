"""Wan 2.1's autoencoder in ComfyUI's layout gives training what the stock Load VAE gives the model."""

import pytest
import torch

from . import tiny
from .tiny_video_vaes import save_wan_vae


@pytest.fixture(scope="module", autouse=True)
def host(comfyui_path):
    tiny.import_host(comfyui_path)
    with torch.inference_mode():
        yield


def test_wan(tmp_path):
    pytest.importorskip("diffusers")
    import comfy.latent_formats
    import comfy.sd
    import comfy.utils

    from sanacog.training import autoencoders

    path = save_wan_vae(tmp_path / "wan_2.1_vae.safetensors")
    host_vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)))
    host_vae.first_stage_model.float()
    host_vae.vae_dtype = torch.float32
    pixels = torch.rand(9, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    want = comfy.latent_formats.Wan21().process_in(host_vae.encode(pixels))
    ours = autoencoders.load("wan", path)
    z = ours.encode(pixels.movedim(-1, 0)[None] * 2 - 1)
    assert z.shape == want.shape == (1, 16, 3, 4, 6)
    assert (z - want).norm() < 1e-4 * want.norm()
    shown = host_vae.decode(comfy.latent_formats.Wan21().process_out(want))[0]
    drawn = (ours.decode(z)[0].movedim(0, -1) + 1) / 2
    assert (drawn.clamp(0, 1) - shown).abs().max() < 1e-3
