"""DC-AE as the host's VAE, on random tiny weights: the same numbers as the bare core."""

import json
import logging
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file

from sanacog.sana_core.autoencoder import AutoencoderDC
from sanacog.sana_core.autoencoder_checkpoint import from_canonical

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


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16])
def test_lazily_loaded_weights_of_another_type(host, kept, tmp_path, monkeypatch):
    """Newer hosts on NVIDIA make linear layers without weights, which then are the file's in its own type; where the patcher is not
    dynamic, as on this processor, they have to become that of the convolutions."""
    memory = pytest.importorskip("comfy.memory_management", reason="a host before dynamic loading")
    if not hasattr(memory, "aimdo_enabled"):
        pytest.skip("this host has no dynamic VRAM")
    path, core = tmp_path / "dcae.safetensors", tiny.dcae().to(kept).float()
    save_file({key: t.to(kept).contiguous() for key, t in from_canonical(core.state_dict(), "diffusers").items()}, path,
              {"config": json.dumps(asdict(tiny.DCAE))})
    monkeypatch.setattr(memory, "aimdo_enabled", True)
    monkeypatch.setattr(host.comfy.model_management, "WINDOWS", True, raising=False)  # elsewhere some hosts allocate
    vae = host.vae.load_dcae(path)
    assert not vae.patcher.is_dynamic() and {p.dtype for p in vae.first_stage_model.parameters()} == {vae.vae_dtype}
    assert apart(vae.decode(noise(1)), (core.decode(noise(1)) / 2 + 0.5).clamp(0, 1).movedim(1, -1)) < 1e-5


def test_what_newer_nodes_hand_on_says_nothing(vae):
    picture = torch.rand(1, 64, 96, 3)
    assert torch.equal(vae.encode(picture, not_video=True), vae.encode(picture))
    assert torch.equal(vae.encode_tiled(picture, not_video=None), vae.encode_tiled(picture))


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


# DC-AEs of other models

def save_variant(path, params, **config):
    """A DC-AE of other parameters. config: what its file says; nothing where it is empty."""
    weights = from_canonical(AutoencoderDC(params).state_dict(), "diffusers")
    save_file({key: t.contiguous() for key, t in weights.items()}, path, metadata={"config": json.dumps(config)} if config else None)
    return path


@pytest.mark.parametrize("stated, said", [({"scaling_factor": 0.3189}, ["0.3189", "0.41407"]), ({}, ["nothing tells", "-mix"]),
                                          ({"scaling_factor": 0.41407}, None)])
def test_dcae_of_another_scale_is_warned_of(host, tmp_path, caplog, stated, said):
    caplog.set_level(logging.WARNING)
    config = asdict(tiny.DCAE) | stated if stated else {}
    loaded = host.vae.load_dcae(save_variant(tmp_path / "dc-ae-f32c32-in-1.0.safetensors", tiny.DCAE, **config))
    assert loaded.latent_scale == pytest.approx(stated.get("scaling_factor", 0.41407))
    warned = [record.getMessage() for record in caplog.records]
    if said is None:
        assert not warned
        return
    [line] = warned
    assert all(words in line for words in ["dc-ae-f32c32-in-1.0.safetensors", "dc-ae-f32c32-sana-1.1", *said])


def test_dcae_of_another_compression_is_refused(host, tmp_path):
    """f64c128: there the latent would have been blamed for it, at the end of a run."""
    def deeper(value):
        return value[:1] + value

    names = ("block_types", "block_out_channels", "layers_per_block", "qkv_multiscales")
    other = replace(tiny.DCAE, latent_channels=128, decoder_act_fns="silu", encoder_out_shortcut=False, decoder_in_shortcut=False, **{
        f"{side}_{name}": deeper(getattr(tiny.DCAE, f"{side}_{name}")) for side in ("encoder", "decoder") for name in names})
    path = save_variant(tmp_path / "dc-ae-f64c128-in-1.0.safetensors", other, **asdict(other))
    with pytest.raises(ValueError, match="f64c128-in.*DC-AE f64c128.*128 channels of 64 x 64 px.*32 of 32 x 32.*sana-1.1"):
        host.vae.load_dcae(path)
