"""The loaders' lists: whatever the reader can read is offered, by a name that leads back to it."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sanacog.storage.checkpoints import open_checkpoint

from . import tiny

WEIGHTS = {"a.weight": torch.ones(2), "b.weight": torch.zeros(3)}


def shards(folder, stem="diffusion_pytorch_model", index=None):
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, (key, t) in zip(names, WEIGHTS.items()):
        save_file({key: t}, folder / name)
    if index:
        (folder / index).write_text(json.dumps({"weight_map": dict(zip(WEIGHTS, names))}))


def single(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(WEIGHTS, path)


@pytest.fixture
def lists(comfyui_path, tmp_path, monkeypatch):
    """host.files, looking into folders of this test alone."""
    tiny.import_host(comfyui_path)
    import folder_paths

    from sanacog.host import files

    places = {kind: ([str(tmp_path / kind)], folder_paths.supported_pt_extensions) for kind in files.SUBFOLDERS}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths",
                        folder_paths.folder_names_and_paths | places | {"diffusers": ([str(tmp_path / "diffusers")], ["folder"])})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return files


@pytest.mark.parametrize("stem, index", [
    ("diffusion_pytorch_model", "diffusion_pytorch_model.safetensors.index.json"),
    ("diffusion_pytorch_model.bf16", "diffusion_pytorch_model.safetensors.index.bf16.json"), ("model", None)])
def test_a_folder_of_shards(lists, tmp_path, stem, index):
    shards(tmp_path / "diffusion_models" / "video" / "CogVideoX-5b", stem, index)
    assert lists.choices("diffusion_models") == ["video/CogVideoX-5b"]
    path = lists.model_path("diffusion_models", "video/CogVideoX-5b")
    assert open_checkpoint(path).load().keys() == WEIGHTS.keys()


def test_shards_that_lie_flat(lists, tmp_path):
    shards(tmp_path / "diffusion_models", "CogVideoX-5b")
    shards(tmp_path / "diffusion_models", "other.fp16", "other.safetensors.index.fp16.json")
    single(tmp_path / "diffusion_models" / "one.safetensors")
    names = ["CogVideoX-5b.safetensors (2 shards)", "other.fp16.safetensors (2 shards)"]
    assert lists.choices("diffusion_models") == ["one.safetensors", *names]
    path = lists.model_path("diffusion_models", names[0])
    assert open_checkpoint(path).load().keys() == WEIGHTS.keys()
    before = lists.fingerprint(path)
    os.utime(tmp_path / "diffusion_models" / "CogVideoX-5b-00002-of-00002.safetensors", (1, 1))
    assert before != lists.fingerprint(path)  # any of its shards counts


def test_two_sharded_models_of_a_folder(lists, tmp_path):
    shards(tmp_path / "vae" / "X")
    shards(tmp_path / "vae" / "X", "diffusion_pytorch_model.fp16")
    assert lists.choices("vae") == ["X", "X/diffusion_pytorch_model.fp16.safetensors (2 shards)",
                                    "X/diffusion_pytorch_model.safetensors (2 shards)"]
    assert open_checkpoint(lists.model_path("vae", "X")).files[0].name == "diffusion_pytorch_model-00001-of-00002.safetensors"


def test_a_model_of_a_repository_downloaded_by_hand(lists, tmp_path):
    """models/diffusers/X/transformer and the like, without the model_index.json above it."""
    shards(tmp_path / "diffusers" / "CogVideoX-5b" / "transformer", index="diffusion_pytorch_model.safetensors.index.json")
    single(tmp_path / "diffusers" / "CogVideoX-5b" / "vae" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "diffusers" / "CogVideoX-5b" / "text_encoder").mkdir()  # not downloaded
    assert lists.choices("diffusion_models") == ["CogVideoX-5b/transformer"] and lists.choices("text_encoders") == []
    for kind in ("diffusion_models", "vae"):
        name, = lists.choices(kind)
        assert open_checkpoint(lists.model_path(kind, name)).load().keys() == WEIGHTS.keys()
    (tmp_path / "diffusers" / "CogVideoX-5b" / "model_index.json").write_text("{}")
    assert lists.choices("diffusion_models") == lists.choices("vae") == ["CogVideoX-5b"]


def test_all_that_is_offered_can_be_read(lists, tmp_path):
    """One of everything: the list and the reader agree, also on what is broken off."""
    root = tmp_path / "diffusion_models"
    shards(root, "flat")
    shards(root / "sharded", "model", "model.safetensors.index.json")
    shards(root / "both", "model")
    single(root / "both" / "model.bf16.safetensors")
    single(root / "deep" / "er" / "one.sft")
    (root / "half").mkdir()
    (root / "half" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    single(root / "half" / "model.bf16.safetensors")
    names = lists.choices("diffusion_models")
    assert {"both", "sharded", "half", str(Path("deep/er/one.sft")), "flat.safetensors (2 shards)"} <= set(names)
    for name in names:
        path = lists.model_path("diffusion_models", name)
        if name == "half/model.safetensors.index.json":
            with pytest.raises(FileNotFoundError, match="of 1 files of this model 1 are missing"):
                open_checkpoint(path)
        else:
            assert open_checkpoint(path).load().keys() == WEIGHTS.keys(), name


def test_listing_opens_nothing(lists, tmp_path, monkeypatch):
    shards(tmp_path / "diffusion_models" / "X", index="diffusion_pytorch_model.safetensors.index.json")
    shards(tmp_path / "diffusion_models", "flat")
    monkeypatch.setattr("builtins.open", lambda *a, **k: pytest.fail(f"opened {a[0]}"))
    monkeypatch.setattr("io.open", lambda *a, **k: pytest.fail(f"opened {a[0]}"))
    assert len(lists.choices("diffusion_models")) == 2
