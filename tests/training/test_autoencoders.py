"""SANA-Video's autoencoders: latents as their figures say, and files of others refused."""

import builtins
import json

import pytest
import torch

from sanacog.training import autoencoders

diffusers = pytest.importorskip("diffusers")
WAN = dict(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
LTX2 = dict(block_out_channels=(8, 16, 32, 64), decoder_block_out_channels=(8, 16, 32), layers_per_block=(1,) * 5,
            decoder_layers_per_block=(1,) * 4)


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wan")
    diffusers.AutoencoderKLWan(**WAN).to(torch.bfloat16).save_pretrained(folder / "vae")
    return folder / "vae"


@pytest.fixture(scope="module")
def ltx2(tmp_path_factory):
    torch.manual_seed(0)
    network = diffusers.AutoencoderKLLTX2Video(**LTX2)
    network.latents_mean.copy_(torch.linspace(-1, 1, 128))
    network.latents_std.copy_(torch.linspace(0.5, 2, 128))
    folder = tmp_path_factory.mktemp("ltx2")
    network.save_pretrained(folder / "vae")
    return folder / "vae"


# Of a clip of (frames, height, width): its latent's size, and figures of some channels, by the published configs.
CASES = {"wan": ((5, 32, 48), (16, 2, 4, 6), {0: (-0.7571, 2.8184), 15: (-0.2921, 1.916)}),
         "ltx2": ((9, 64, 96), (128, 2, 2, 3), {0: (-1.0, 0.5), 127: (1.0, 2.0)})}


@pytest.mark.parametrize("kind", CASES)
def test_latents_are_the_means_normalised(request, kind):
    folder = request.getfixturevalue(kind)
    clip, size, figures = CASES[kind]
    ours = autoencoders.load(kind, folder)
    theirs = getattr(diffusers, autoencoders.PUBLISHED[kind][0]).from_pretrained(folder, torch_dtype=torch.float32)
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in ours.parameters())
    pixels = torch.rand(1, 3, *clip, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        z, mean = ours.encode(pixels), theirs.encode(pixels).latent_dist.mean
        assert z.shape == (1, *size)
        for channel, (middle, deviation) in figures.items():
            assert torch.allclose(z[:, channel] * deviation + middle, mean[:, channel], atol=1e-5)
        assert torch.allclose(ours.decode(z), theirs.decode(mean).sample, atol=1e-4)
        first = ours.encode(pixels[:, :, :1])  # which does not see what comes after it: a given frame is the clip's own first
        assert torch.allclose(first[:, :, 0], z[:, :, 0], atol=1e-4)


def test_a_file_inside_such_a_folder_will_do(wan):
    [file] = wan.glob("*.safetensors")
    pixels = torch.zeros(1, 3, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(autoencoders.load("wan", file).encode(pixels), autoencoders.load("wan", wan).encode(pixels))


def test_others_are_refused(wan, ltx2, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="found _class_name AutoencoderKLWan.*expected AutoencoderKLLTX2Video with 128.*LTX-2.3"):
        autoencoders.load("ltx2", wan)
    (wide := tmp_path / "vae").mkdir()
    for file in wan.iterdir():
        (wide / file.name).write_bytes(file.read_bytes())
    (wide / "config.json").write_text(json.dumps(json.loads((wan / "config.json").read_text()) | {"z_dim": 48}))
    with pytest.raises(ValueError, match="z_dim 48; expected AutoencoderKLWan with 16 channels"):
        autoencoders.load("wan", wide)
    [file] = ltx2.glob("*.safetensors")
    (alone := tmp_path / "LTX23_video_vae_bf16.safetensors").write_bytes(file.read_bytes())
    for kind in ("wan", "ltx2"):
        with pytest.raises(ValueError, match="LTX23_video_vae_bf16.safetensors: not a file that can be read"):
            autoencoders.load(kind, alone)
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *more, **named: real(name, *more, **named) if name != "diffusers"
                        else (_ for _ in ()).throw(ModuleNotFoundError(name)))
    with pytest.raises(ModuleNotFoundError, match="pip install diffusers"):
        autoencoders.load("wan", wan)
