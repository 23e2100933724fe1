"""A few steps of every stage of the tiny CogVideoX: resumed equals uninterrupted, the exported files are what the pack
loads, and the pieces of the recipe do what they say."""
import json
from functools import partial

import pytest
import torch

from sanacog.cogvideo_core.config import identify, identify_autoencoder
from sanacog.commands import train_embedded as cli
from sanacog.evaluation.drawn import clips
from sanacog.training import config_files
from sanacog.training.data import buckets, layouts, media
from sanacog.training.embedded import autoencoder, cogvideox, drawn_folders, recipe, t5, video_transformer
from sanacog.training.embedded import video_autoencoder as vae

SMOKE = ["tiny-cogvideox", "--steps", "2", "--cached", "6", "--cases", "8", "--device", "cpu"]
STAGES = cogvideox.CogVideoX.stages


def train(folder, *more):
    assert cli.main([*SMOKE, "--work", str(folder / "work"), "--output", str(folder / "models"), *more]) == 0


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    patch = pytest.MonkeyPatch()
    patch.setattr(vae, "CLIPS_A_STEP", 1)
    patch.setattr(vae, "FRAMES_A_STEP", 2)
    patch.setattr(cogvideox, "SAMPLED_STEPS", 1)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in cogvideox.CogVideoX.configured])
def test_resumed_equals_uninterrupted(stage, whole, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    for path in (whole / "work").iterdir():
        if path.suffix == ".safetensors" or path.stem in STAGES[: STAGES.index(stage)]:
            (work / path.name).write_bytes(path.read_bytes())
    train(tmp_path, "--stage", stage, "--stop-at", "1")
    assert torch.load(work / f"{stage}.pt", weights_only=True)["step"] == 1
    train(tmp_path, "--stage", stage)
    ours, theirs = (torch.load(folder / "work" / f"{stage}.pt", weights_only=True) for folder in (tmp_path, whole))
    assert ours["step"] == theirs["step"] == 2
    for kind in ("model", "average"):
        assert all(torch.equal(ours[kind][k], theirs[kind][k]) for k in theirs[kind])


def test_exported_transformers_are_identified(whole):
    for stage, params in (("transformer", video_transformer.PARAMS), ("image", video_transformer.IMAGE_PARAMS)):
        tensors, config = recipe.read_file(whole / "models" / cogvideox.FILES[stage])
        found = identify({k: tuple(v.shape) for k, v in tensors.items()}, config, "x")
        assert found.params == params and found.layout == "diffusers"
        assert all(t.dtype == torch.float16 for t in tensors.values())


def test_exported_autoencoder_is_identified(whole):
    tensors, config = recipe.read_file(whole / "models" / cogvideox.FILES["autoencoder"])
    found = identify_autoencoder({k: tuple(v.shape) for k, v in tensors.items()}, config, "x")
    assert found.params == vae.PARAMS and found.layout == "diffusers"
    assert config["scaling_factor"] == video_transformer.PARAMS.scaling_factor


def test_exported_text_encoder_reads_like_the_trained_one(whole):
    model, tokenizer = t5.from_file(*recipe.read_file(whole / "models" / cogvideox.FILES["text"]))
    trained = cogvideox.CogVideoX(cli.arguments([*SMOKE, "--work", str(whole / "work")])).done("text").modules
    prompts = [clips.evaluation_scenes()[1][0]]
    ours = t5.encode_prompts(model, tokenizer, prompts)
    theirs = t5.encode_prompts(trained.model, trained.tokenizer, prompts)
    assert (ours - theirs).norm() / theirs.norm() < 2e-3  # fp16 on disk


def test_files_are_small_and_export_says_what_it_measured(whole):
    text = (whole / "models" / "README.md").read_text()
    figures = json.loads((whole / "work" / "figures.json").read_text())
    for row in ("text to video, CFG 3", "text to video, CFG 6", "image to video, 17 frames of 128x128, CFG 2"):
        assert f"| {row} | {figures[row]['colour']:.3f} |" in text
    for stage in ("transformer", "image"):
        assert (whole / "models" / f"cogvideox_{stage}.png").stat().st_size > 1000
    assert "PSNR" in text and (whole / "models" / "cogvideox_loss.png").exists()
    assert all((whole / "models" / name).stat().st_size < 8e6 for name in cogvideox.FILES.values())


def test_a_stage_of_the_other_family_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.arguments(["tiny-sana", "--stage", "image"])
    assert "tiny-sana has no stage 'image'" in capsys.readouterr().err


def test_chapters_of_a_readme(tmp_path):
    path = tmp_path / "README.md"
    for title, line in (("One", "first"), ("Two", "second"), ("One", "third")):
        recipe.write_chapter(path, title, [line])
    assert path.read_text() == "# One\n\nthird\n\n# Two\n\nsecond\n"


def test_image_to_video_starts_as_the_text_to_video_model():
    torch.manual_seed(0)
    model = video_transformer.build()
    torch.nn.init.normal_(model.proj_out.weight)
    ours = video_transformer.with_picture(model)
    x, states, start = torch.randn(2, *vae.LATENT), torch.randn(2, 32, 96), torch.randn(2, 16, 1, 12, 12)
    condition = video_transformer.beside(start)
    assert torch.equal(condition[:, :, :1], start) and not condition[:, :, 1:].any()
    at = torch.tensor([999, 3])
    with torch.no_grad():
        assert torch.allclose(ours(torch.cat([x, condition], dim=1), at, states), model(x, at, states), atol=1e-5)


def test_latents_are_exact():
    """Who trains on the embedded models draws latents of the encoder's distribution: it must not be noise."""
    shipped = cogvideox.load_models(cli.MODELS)[2]
    clip = clips.draw(clips.sample_scenes(1, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(0), clips.WIDE)
    for model in (shipped, vae.build()):
        with torch.no_grad():
            mean, spread = model.moments(clip)
        assert mean.std() > 0.05 and (spread == vae.LOG_VARIANCE).all()


def test_drawn_clips_are_read_as_they_were_drawn(tmp_path):
    """Without loss, at their own rate, each in its format, and with all their sentences."""
    loaded = config_files.load(["train/tiny_cogvideox"], [f"data.path={tmp_path}"], environ={}).config
    sizes = [buckets.Bucket(*size) for size in loaded.data.buckets]
    assert loaded.data.fps is None and sizes == [buckets.Bucket(f.frames, f.side, f.side) for f in (clips.SMALL, clips.LARGE)]
    for form, share in ((clips.SMALL, 0.0), (clips.LARGE, 1.0)):
        folder = tmp_path / str(form.frames)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cogvideox, "LARGE_SHARE", share)
            drawn_folders.write(folder, 3, partial(cogvideox.plan, clips.NARROW), ".mp4")
        rows = layouts.read_source(folder, lambda text: None)
        generator = torch.Generator().manual_seed(0)
        shown = clips.draw(clips.sample_scenes(3, generator), generator, clips.NARROW, form=form)
        for row, clip in zip(rows, shown, strict=True):
            row = media.probe_row(row, folder)
            assert (row.frames, row.fps, row.width, row.height) == (form.frames, form.rate, form.side, form.side) and len(row.captions) == 2
            placed = buckets.place(row, sizes)
            assert (media.load(row, placed, folder) - clip).abs().max() < 0.005  # of 8 bits


def test_muon_trains_what_mixes_channels_of_the_decoder():
    model = vae.build()
    names = {id(p): name for name, p in model.named_parameters()}
    chosen = {names[id(p)] for p in autoencoder.kernels(model.decoder)}
    assert chosen == {name for name, p in model.named_parameters()
                      if name.startswith("decoder") and name.endswith("weight") and p.dim() > 1 and "conv_out" not in name}
