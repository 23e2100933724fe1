"""What the stock node Save Checkpoint writes is read by all three loaders of a family: one file for model, text encoder, VAE."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from . import tiny, tiny_cogvideox
from .sana.sana_model import noise

PROMPT = "a large red circle on a blue background"


@pytest.fixture(scope="module")
def host(comfyui_path):
    tiny.import_host(comfyui_path)
    import folder_paths
    import nodes
    from comfy_extras.nodes_model_merging import CheckpointSave

    from sanacog.host.cogvideox import model as cogvideox, text as t5, vae as cogvideox_vae
    from sanacog.host.sana import model as sana, text as gemma, vae as dcae

    with torch.inference_mode():
        yield SimpleNamespace(
            folder_paths=folder_paths, nodes=nodes, CheckpointSave=CheckpointSave,
            sana=(sana.load_sana, gemma.load_text_encoder, dcae.load_dcae),
            cogvideox=(cogvideox.load_cogvideox, t5.load_t5, cogvideox_vae.load_cogvideox_vae))


def parts(family, folder):
    """Files of the three parts."""
    if family == "sana":
        return (tiny.save_sana(folder / "model.safetensors"), tiny.save_gemma(folder / "text.safetensors"),
                tiny.save_dcae(folder / "vae.safetensors"))
    return (tiny_cogvideox.save_transformer(folder / "model.safetensors"), tiny_cogvideox.save_t5(folder / "text.safetensors"),
            tiny_cogvideox.save_autoencoder(folder / "vae.safetensors"))


def saved(host, folder, monkeypatch, loaded):
    monkeypatch.setattr(host.folder_paths, "get_output_directory", lambda: str(folder))
    host.CheckpointSave().save(*loaded, "checkpoints/ComfyUI")
    [file] = (folder / "checkpoints").iterdir()
    return file


def latent(family):
    return noise(1) if family == "sana" else torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(1))


def same(host, family, ours, theirs):
    """Whether two (model, clip, vae) have the same weights and give the same."""
    old, new = (loaded[0].model.diffusion_model.state_dict() for loaded in (ours, theirs))
    assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)
    assert ours[0].model.model_config.params == theirs[0].model.model_config.params
    [[states, _]], [[others, _]] = (host.nodes.CLIPTextEncode().encode(loaded[1], PROMPT)[0] for loaded in (ours, theirs))
    assert torch.equal(states, others)
    assert torch.equal(ours[2].decode(latent(family)), theirs[2].decode(latent(family)))
    return True


@pytest.mark.parametrize("family", ["sana", "cogvideox"])
def test_all_three_loaders_read_it(host, family, tmp_path, monkeypatch):
    loaders = getattr(host, family)
    loaded = tuple(load(path) for load, path in zip(loaders, parts(family, tmp_path)))
    file = saved(host, tmp_path, monkeypatch, loaded)
    again = tuple(load(file) for load in loaders)
    assert same(host, family, again, loaded)


@pytest.mark.parametrize("family", ["sana", "cogvideox"])
def test_so_does_one_in_stable_diffusions_names(host, family, tmp_path, monkeypatch):
    """As the node writes it when the model is one of the host's: first_stage_model., and the text encoder without a place."""
    loaders = getattr(host, family)
    loaded = tuple(load(path) for load, path in zip(loaders, parts(family, tmp_path)))
    tensors = load_file(saved(host, tmp_path, monkeypatch, loaded))
    renamed = {key.replace("vae.", "first_stage_model.", 1) if key.startswith("vae.") else key.removeprefix("text_encoders."): t
               for key, t in tensors.items()}
    assert any(key.startswith("first_stage_model.") for key in renamed)
    save_file(renamed, tmp_path / "renamed.safetensors")
    again = tuple(load(tmp_path / "renamed.safetensors") for load in loaders)
    assert same(host, family, again, loaded)


@pytest.mark.parametrize("family, other", [("sana", "cogvideox"), ("cogvideox", "sana")])
def test_a_checkpoint_of_the_other_family(host, family, other, tmp_path, monkeypatch):
    loaded = tuple(load(path) for load, path in zip(getattr(host, other), parts(other, tmp_path)))
    file = saved(host, tmp_path, monkeypatch, loaded)
    own = {"sana": ("Load Sana Model", "Load Sana Text Encoder", "Load DC-AE"),
           "cogvideox": ("Load CogVideoX Model", "Load CogVideoX Text Encoder", "Load CogVideoX VAE")}[family]
    for load, name in zip(getattr(host, family), own):
        with pytest.raises(ValueError, match=f"{file.name}.*{'CogVideoX' if other == 'cogvideox' else 'Sana|DC-AE'}") as error:
            load(file)
        assert name not in str(error.value)


@pytest.mark.parametrize("family, vae", [("sana", "DC-AE"), ("cogvideox", "CogVideoX VAE")])
def test_a_checkpoint_with_a_part_left_out(host, family, vae, tmp_path, monkeypatch):
    loaders = getattr(host, family)
    loaded = tuple(load(path) for load, path in zip(loaders, parts(family, tmp_path)))
    tensors = load_file(saved(host, tmp_path, monkeypatch, loaded))
    for load, gone in zip(loaders, ("model.", "text_encoders.", "vae.")):
        save_file({key: t for key, t in tensors.items() if not key.startswith(gone)}, tmp_path / "part.safetensors")
        with pytest.raises(ValueError, match="part.safetensors.*It is a checkpoint as Save Checkpoint writes one, and holds"):
            load(tmp_path / "part.safetensors")
    only = {key.replace("vae.", "first_stage_model.", 1): t for key, t in tensors.items() if key.startswith("vae.")}
    save_file(only, tmp_path / "vae_only.safetensors")
    for load in loaders[:2]:
        with pytest.raises(ValueError, match=f"vae_only.safetensors.*{vae}"):
            load(tmp_path / "vae_only.safetensors")
