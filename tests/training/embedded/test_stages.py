"""A few steps of every training stage: resumed equals uninterrupted, and the exported files are what the pack loads."""
import json
import shutil
from pathlib import Path

import pytest
import safetensors
import torch

from sanacog.sana_core import checkpoint
from sanacog.sana_core.autoencoder_checkpoint import identify_autoencoder
from sanacog.sana_core.config import identify
from sanacog.training import session
from sanacog.training.embedded import autoencoder, gemma, loop, sana, transformer
from sanacog.commands import train_embedded as cli

SMOKE = ["tiny-sana", "--steps", "3", "--pictures", "32", "--cases", "8", "--device", "cpu"]


def train(folder, *more):
    assert cli.main([*SMOKE, "--work", str(folder / "work"), "--output", str(folder / "models"), *more]) == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    for stage in sana.Sana.stages:
        train(folder, "--stage", stage)
    return folder


@pytest.fixture(scope="module")
def exported(whole):
    train(whole, "--stage", "export")
    return whole


@pytest.mark.parametrize("stage", [stage for stage in sana.Sana.stages if stage not in sana.Sana.configured])
def test_resumed_equals_uninterrupted(stage, whole, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    for earlier in sana.Sana.stages[: sana.Sana.stages.index(stage)]:
        for end in ("pt", "json"):
            (work / f"{earlier}.{end}").write_bytes((whole / "work" / f"{earlier}.{end}").read_bytes())
    train(tmp_path, "--stage", stage, "--stop-at", "1")
    first = torch.load(work / f"{stage}.pt", weights_only=True)
    assert first["step"] == 1
    train(tmp_path, "--stage", stage)
    ours = torch.load(work / f"{stage}.pt", weights_only=True)
    theirs = torch.load(whole / "work" / f"{stage}.pt", weights_only=True)
    assert ours["step"] == theirs["step"] == 3
    for kind in ("model", "average"):
        assert ours[kind].keys() == theirs[kind].keys()
        assert all(torch.equal(ours[kind][k], theirs[kind][k]) for k in ours[kind])
    assert any(not torch.equal(first["model"][k], ours["model"][k]) for k in ours["model"])
    assert json.loads((work / f"{stage}.json").read_text()) == json.loads((whole / "work" / f"{stage}.json").read_text())


def read(path):
    with safetensors.safe_open(path, "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, json.loads(file.metadata()["config"])


def test_exported_transformer_is_identified(exported):
    tensors, config = read(exported / "models" / sana.FILES["transformer"])
    shapes = {k: tuple(v.shape) for k, v in tensors.items()}
    found = identify(shapes, config, sana.FILES["transformer"])
    assert found.params == transformer.PARAMS and found.layout == "diffusers"
    checkpoint.check_shapes(shapes, found)
    assert all(t.dtype == torch.float16 for t in tensors.values())
    assert tensors["transformer_blocks.0.ff.conv_point.weight"].dim() == 4


def test_exported_autoencoder_is_identified(exported):
    tensors, config = read(exported / "models" / sana.FILES["autoencoder"])
    found = identify_autoencoder({k: tuple(v.shape) for k, v in tensors.items()}, config, "x")
    assert found.layout == "diffusers" and found.params == autoencoder.build().params


def test_exported_text_encoder_reads_like_the_trained_one(exported):
    tensors, config = read(exported / "models" / sana.FILES["text"])
    model, tokenizer = gemma.from_file(tensors, config)
    training = sana.Sana(cli.arguments([*SMOKE, "--work", str(exported / "work")]))
    trained = training.done("text").modules
    prompt = ["a large red circle on a blue background"]
    ours, _ = gemma.encode_prompts(model, tokenizer, prompt, True)
    theirs, _ = gemma.encode_prompts(trained.model, trained.tokenizer, prompt, True)
    assert (ours - theirs).norm() / theirs.norm() < 2e-3  # fp16 on disk


def test_export_says_what_it_measured(exported):
    text = (exported / "models" / "README.md").read_text()
    figures = json.loads((exported / "work" / "figures.json").read_text())
    for row in ("prompt alone", "with the instruction"):
        assert f"{figures[row]['colour+background']:.3f}" in text
    for picture in ("contact_sheet.png", "loss.png"):
        assert (exported / "models" / picture).stat().st_size > 1000


def test_a_stage_without_the_one_before_says_so(tmp_path):
    with pytest.raises(SystemExit, match="stage 'autoencoder' has not been trained"):
        train(tmp_path, "--stage", "decoder")


def test_further_goes_on_from_the_files(exported, tmp_path):
    """The decoder alone changes; the files of what was not trained stay as they are."""
    shutil.copytree(exported / "models", tmp_path / "models")
    more = ["--further", "--source", str(tmp_path / "models")]
    train(tmp_path, "--stage", "decoder", *more)
    train(tmp_path, "--stage", "export", *more)
    for name, path in sana.FILES.items():
        before, after = (read(folder / "models" / path)[0] for folder in (exported, tmp_path))
        changed = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
        assert changed == ({"decoder"} if name == "autoencoder" else set())
    first, text = ((folder / "models" / "README.md").read_text() for folder in (exported, tmp_path))
    history = next(line for line in first.splitlines() if line.startswith("Training: "))
    assert history + " Then further: decoder 3 steps" in text and "![loss](further_loss.png)" in text
    train(tmp_path, "--stage", "export", *more)
    assert (tmp_path / "models" / "README.md").read_text().count("Then further") == 1


def test_further_goes_on_gently(exported, tmp_path, monkeypatch):
    rates = []

    def look(loaded):
        rates.append(loaded.config.train.lr)
        raise SystemExit("looked")
    monkeypatch.setattr(session, "train", look)
    decoders = []
    monkeypatch.setattr(loop.Fit, "run", lambda fit, **_: decoders.append(fit.lr))
    shutil.copytree(exported / "work", tmp_path / "work", ignore=shutil.ignore_patterns("transformer"))
    for more in ([], ["--further", "--source", str(exported / "models")]):
        with pytest.raises(SystemExit, match="looked"):
            train(tmp_path, "--stage", "transformer", *more)
        train(tmp_path, "--stage", "decoder", *more)
    assert rates[1] == pytest.approx(0.4 * rates[0]) and decoders[1] == pytest.approx(0.4 * decoders[0])


def test_further_is_shown_other_drawings(exported, tmp_path, monkeypatch):
    """By the trainer and by the loop here, and others again when it goes on from another file."""
    captions, steps = [], []

    def look(loaded):
        captions.append((Path(loaded.config.data.path) / "metadata.jsonl").read_text())
        raise SystemExit("looked")

    def loss(training, step, progress):
        steps.append(step)
        return sum(p.square().sum() for p in training.model.decoder.parameters())
    monkeypatch.setattr(session, "train", look)
    monkeypatch.setattr(autoencoder.Decoding, "loss", loss)
    shutil.copytree(exported / "work", tmp_path / "work", ignore=shutil.ignore_patterns("transformer"))
    shutil.copytree(exported / "models", tmp_path / "other")
    for name in ("autoencoder", "transformer"):
        tensors, config = read(exported / "models" / sana.FILES[name])
        safetensors.torch.save_file(tensors, tmp_path / "other" / sana.FILES[name], {"config": json.dumps(config), "of": "another run"})
    for more in ([], ["--further", "--source", str(exported / "models")], ["--further", "--source", str(tmp_path / "other")]):
        with pytest.raises(SystemExit, match="looked"):
            train(tmp_path, "--stage", "transformer", *more)
        (tmp_path / "work" / "decoder.pt").unlink()
        train(tmp_path, "--stage", "decoder", *more)
    assert len(set(captions)) == 3
    assert len(set(steps)) == len(steps) == 9 and steps[:3] == [0, 1, 2]


def test_text_goes_further_without_moving_what_others_read(exported, tmp_path, monkeypatch):
    shutil.copytree(exported / "models", tmp_path / "models")
    before, tokenizer = sana.load_models(tmp_path / "models")[:2]
    prompts, _ = gemma.text_batch(16, 3)

    def moved(steps):
        torch.manual_seed(0)
        training = gemma.TextTraining((before, tokenizer))
        optimizer = torch.optim.Adam(training.model.parameters(), lr=1e-2)
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            training.loss(step, 0.0).backward()
            optimizer.step()
        states, kept = (gemma.encode_prompts(model, tokenizer, prompts, False)[0] for model in (training.model, before))
        return float(((states - kept).square().sum() / kept.square().sum()).detach())

    assert moved(0) == 0.0
    held = moved(6)
    monkeypatch.setattr(gemma, "STAY", 0.0)
    assert 0 < held < 0.5 * moved(6)
    assert all(p.grad is None for p in before.parameters())
    train(tmp_path, "--further", "--source", str(tmp_path / "models"), "--stage", "text")
    tensors, _ = read(tmp_path / "models" / sana.FILES["text"])
    train(tmp_path, "--further", "--source", str(tmp_path / "models"), "--stage", "export")
    trained, _ = read(tmp_path / "models" / sana.FILES["text"])
    assert torch.equal(tensors["spiece_model"], trained["spiece_model"])
    assert not torch.equal(tensors["model.norm.weight"], trained["model.norm.weight"])


def test_further_does_not_change_what_others_were_trained_on(tmp_path):
    with pytest.raises(SystemExit, match="--further goes with --stage text or decoder or transformer"):
        train(tmp_path, "--further", "--stage", "autoencoder")


def test_schedule_ends_with_the_time(tmp_path):
    network = torch.nn.Linear(2, 1)
    fit = loop.Fit("line", network, lambda step, progress: network(torch.ones(1, 2)).square().mean(), steps=20_000,
                   folder=tmp_path, minutes=0.01)
    fit.run()
    assert 1 < fit.step < 20_000 and fit.progress == 1.0


def test_loss_that_is_not_finite_stops_the_run(tmp_path):
    network = torch.nn.Linear(2, 1)
    fit = loop.Fit("line", network, lambda step, progress: network(torch.full((1, 2), torch.inf)).mean(), steps=5, folder=tmp_path)
    with pytest.raises(RuntimeError, match="the loss is .* at step"):
        fit.run()


def test_instruction_keeps_the_prompts_own_tokens():
    training_bytes = gemma.train_tokenizer()
    tokenizer = gemma.Tokenizer(training_bytes)
    assert tokenizer.pieces.encode("a large", out_type=str) == ["a", "\u2581large"]  # no blank in front, as in Gemma's
    alone, kept = tokenizer.encode("a large red circle", False)
    assert kept == list(range(len(alone))) and alone[0] == gemma.BOS
    ids, kept = tokenizer.encode("a large red circle", True)
    assert kept[0] == 0 and len(kept) == len(alone)
    assert tokenizer.pieces.decode([ids[i] for i in kept[1:]]).strip() == "a large red circle"
    assert tokenizer.encode("", False) == ([gemma.BOS], [0])
    assert training_bytes == gemma.train_tokenizer()
