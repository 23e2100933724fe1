"""python run.py train, from a folder to the result's file, for every kind of training, and what it says of mistakes."""

import json

import av
import pytest
import safetensors.torch
import torch

from sanacog.commands import train
from sanacog.training import checkpoints, config_files, models, session, text
from sanacog.training.data import cache

from .runs import clips, loaded, pictures, sana_video, settings

SANA = "sanacog_tiny_sana.safetensors"


def trained(tmp_path, *more, config="train/example", name="run"):
    run = loaded(tmp_path, *more, name=name, config=config)
    path = session.train(run, lambda text: None)
    return run.config, safetensors.torch.load_file(path), path


def history(config):
    return [json.loads(line) for line in (session.folder_of(config) / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("more", ((), ("model.quantize=int8",), ("model.dtype=bf16", "train.gradient_checkpointing=true"),
                                  ("train.optimizer=came", "train.betas=null", "lora.dora=true")), ids=str)
def test_lora(tmp_path, more):
    config, tensors, path = trained(tmp_path, *more)
    assert all(name.startswith("transformer.transformer_blocks.") for name in tensors)
    assert any(t.abs().sum() > 0 for name, t in tensors.items() if "lora_B" in name)
    assert all(t.dtype == torch.float32 for t in tensors.values())
    found = checkpoints.everyone(session.folder_of(config) / "checkpoints")
    assert (found[-1].path / "run.safetensors").read_bytes()[-1000:] == path.read_bytes()[-1000:]
    assert [entry["step"] for entry in history(config)] == [1, 2, 3, 4]
    assert (session.folder_of(config) / "report.md").read_text().startswith("# run\n")


def test_full_is_a_model_that_loads(tmp_path):
    config, tensors, path = trained(tmp_path, "train.kind=full", "lora=null", "train.lr=1e-3", "output.dtype=bf16")
    before = models.Models(config.model).transformer(torch.float32)
    again = models.Models(config.model.model_copy(update={"transformer": str(path)}))
    network = again.transformer(torch.float32)
    assert again.params == models.Models(config.model).params
    change = sum((a - b).norm() ** 2 for a, b in zip(network.parameters(), before.parameters())) ** 0.5
    assert change > 0.05 and tensors["patch_embed.proj.weight"].dtype == torch.bfloat16


def test_controlnet(tmp_path):
    folder = pictures(tmp_path / "control")
    lines = [{"file_name": f"{i}.png", "text": "a red circle", "image": f"{(i + 1) % 7}.png"} for i in range(7)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config, tensors, path = trained(tmp_path, f"data.path={folder}", "train.kind=controlnet", "lora=null",
                                    "objective.control_layers=2", "model.quantize=int8")
    assert "controlnet_blocks.1.weight" in tensors and tensors["controlnet_blocks.1.weight"].abs().sum() > 0
    from sanacog.sana_core.controlnet_checkpoint import check_shapes, identify_controlnet
    from sanacog.storage.checkpoints import open_checkpoint

    found = open_checkpoint(path)
    identity = identify_controlnet(found.shapes, found.config, str(path), config_place=found.config_place)
    check_shapes(found.shapes, identity)
    assert identity.wiring == "diffusers" and identity.params.num_layers == 2


def test_controlnet_needs_its_pictures(tmp_path):
    with pytest.raises(ValueError, match="7 rows have no condition picture"):
        trained(tmp_path, "train.kind=controlnet", "lora=null")


def test_sprint(tmp_path):
    base = config_files.load(["models/tiny_sana"], complete=False).config.model.transformer
    more = ("train.kind=sprint", f"train.teacher={base}", f"model.transformer={base}", "lora=null", "train.lr=1e-4",
            "objective.discriminator_layers=[1, 3]", "data.validation=0.2", "validation.every=4", "train.ema=0.5")
    config, tensors, path = trained(tmp_path, *more)
    assert "time_embed.guidance_embedder.linear_1.weight" in tensors and not any("heads" in name for name in tensors)
    assert models.Models(config.model.model_copy(update={"transformer": str(path)})).params.guidance_embeds
    assert [entry["validation_loss"] for entry in history(config) if "validation_loss" in entry][1] >= 0


@pytest.mark.parametrize("variant", ("tiny_cogvideox", "tiny_cogvideox_i2v"))
def test_cogvideox(tmp_path, variant):
    clips(tmp_path / "clips")
    config, tensors, _ = trained(
        tmp_path, f"model.variant={variant}", f"data.path={tmp_path / 'clips'}", "data.buckets=[[9, 64, 64]]",
        "data.validation=0.25", "validation.every=4", "validation.steps=2", "sampling.width=64", "sampling.height=64",
        "validation.prompts=['a red square moving right']", config="train/cogvideox_lora")
    assert any(t.abs().sum() > 0 for name, t in tensors.items() if "lora_B" in name)
    folder = session.folder_of(config) / "samples"
    assert sorted(p.name for p in folder.iterdir()) == [
        "step-000000-0-0.mp4", "step-000000.png", "step-000004-0-0.mp4", "step-000004.png"]
    with av.open(str(folder / "step-000004-0-0.mp4")) as clip:
        assert sum(1 for _ in clip.decode(video=0)) == 9
    assert [e["step"] for e in history(config) if "validation_loss" in e] == [0, 4]


SANA_VIDEO = ("model.variant=tiny_sana_video", "data.buckets=[[9, 64, 64]]", "data.fps=8")


@pytest.mark.parametrize("kind, second", [("lora", False), ("lora", True), ("full", False), ("full", True)])
def test_sana_video(tmp_path, kind, second):
    clips(tmp_path / "clips")
    (tmp_path / "clips" / "3.txt").write_text("a red square moving right, motion score: 7.")
    base, lora = sana_video(tmp_path / "base.safetensors", second), kind == "lora"
    more = ("model.quantize=int8", "train.gradient_checkpointing=true") if lora else ("train.kind=full", "lora=null")
    config, tensors, path = trained(
        tmp_path, *SANA_VIDEO, f"model.transformer={base}", f"data.path={tmp_path / 'clips'}", "data.validation=0.25",
        "validation.every=4", "validation.steps=2", "sampling.width=64", "sampling.height=96", "sampling.frames=9",
        "validation.prompts=['a red square moving right']", *more, config="train/sana_video_lora")
    if lora:
        assert all(name.startswith("transformer.transformer_blocks.") for name in tensors)
        assert any(t.abs().sum() > 0 for name, t in tensors.items() if "lora_B" in name)
    else:
        before, after = (models.Models(config.model.model_copy(update={"transformer": str(p)})) for p in (base, path))
        assert after.params == before.params
        change = zip(after.transformer(torch.float32).parameters(), before.transformer(torch.float32).parameters())
        assert sum((a - b).norm() ** 2 for a, b in change) > 1e-5
    with av.open(str(session.folder_of(config) / "samples" / "step-000004-0-0.mp4")) as clip:
        frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
    assert len(frames) == 9 and frames[0].shape == (96, 64, 3)
    assert [e["step"] for e in history(config) if "validation_loss" in e] == [0, 4]
    index = {about["text"]: key for key, about in cache.Cache(tmp_path / "cache").index() if about["kind"] == "text"}
    assert set(index) == {"", "a red square moving right on a black background motion score: 30.",
                          "a red square moving right motion score: 30.", "a red square moving right, motion score: 7."}
    states, _ = text.Gemma(config.model.text_encoder).encode("a red square moving right motion score: 30.", True)
    found = cache.Cache(tmp_path / "cache").get(index["a red square moving right motion score: 30."])["states"]
    assert torch.equal(found, states)


def test_image_to_video_alone_begins_with_a_held_out_clips_frame(tmp_path, monkeypatch):
    from sanacog.training import latents, validation

    clips(tmp_path / "clips")
    base = sana_video(tmp_path / "base.safetensors")
    seen, real = [], validation.decode
    monkeypatch.setattr(validation, "decode", lambda *of: (lambda z: (seen.append(z), real(*of)(z))[1]))
    kept = []
    prepare = latents.prepare
    monkeypatch.setattr(latents, "prepare", lambda *of: (kept.append(prepare(*of)), kept[0])[1])
    trained(tmp_path, *SANA_VIDEO, f"model.transformer={base}", f"data.path={tmp_path / 'clips'}", "data.validation=0.25",
            "train.steps=1", "validation.every=1", "validation.steps=2", "sampling.width=96", "sampling.height=96",
            "sampling.frames=9", "validation.prompts=['a red square']", "objective.picture_share=1", config="train/sana_video_lora")
    [[clip]] = [list(latent.values())[0] for latent in seen[:1]]
    first = kept[0].cache.get(kept[0].held_out[0].latent)["latent"][None, :, :1]
    assert clip.shape == (1, 16, 3, 8, 8) and torch.equal(clip[:, :, :1], first) and not torch.equal(clip[:, :, 1:2], first)


# --- the command ---


def test_command_trains_and_goes_on(tmp_path, capsys):
    given = ["train/example", *settings(tmp_path, "train.steps=1")]
    assert train.main(given) == 0
    assert train.main([*given[:-1], "train.steps=2"]) == 0
    said = capsys.readouterr().out
    assert "going on from step-000001" in said and "wrote " in said


def test_print_config(capsys):
    assert train.main(["train/sana_lora", "train.lr=2e-4", "--print-config"]) == 0
    assert "train.lr=2e-4 on the command line" in capsys.readouterr().out


@pytest.mark.parametrize("given, status, said", (
    (["train/sana_lorra"], 2, "sana_lora"),
    (["train/example", "data.path=/nowhere"], 1, "/nowhere"),
    (["train/example", "train.lrr=1"], 2, "lr"),
))
def test_mistakes_are_told_in_a_sentence(tmp_path, capsys, given, status, said):
    assert train.main([*given, f"output.folder={tmp_path}", "output.tracker=none"]) == status
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told


def test_embedded_models_are_trained_as_before(capsys):
    with pytest.raises(SystemExit):
        train.main(["tiny-sana", "--stage", "image"])
    assert "tiny-sana has no stage 'image'" in capsys.readouterr().err
