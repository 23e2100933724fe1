"""Pictures, clips and losses on the way: the same each time, and equal to what is drawn elsewhere."""

import json

import av
import pytest
import torch
from PIL import Image

from sanacog.training import latents, models, recipe, run_report, samples, sampling, session, validation
from sanacog.training.embedded import sana_video_transformer as embedded_video
from sanacog.training.embedded import transformer as embedded

from .runs import loaded


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = loaded(tmp_path_factory.mktemp("run"), "data.validation=0.4", "validation.prompts=[a red circle, a blue square]",
                 "validation.seeds=[0, 1]", "sampling.width=64", "sampling.height=96", "validation.steps=3")
    found = models.Models(run.config.model)
    data = latents.prepare(run.config, found, session.folder_of(run.config), torch.device("cpu"), lambda text: None)
    return run.config, found, data, recipe.build(run.config, found)


@pytest.fixture
def levels_from_one(monkeypatch):
    """The embedded Sana's sampler begins at 1 and not at 0.999."""
    def levels(steps, shift):
        t = torch.linspace(1, 0, steps + 1)
        return shift * t / (1 + (shift - 1) * t)
    monkeypatch.setattr(sampling, "flow_sigmas", levels)


def test_sana_is_sampled_as_the_embedded_one_is(made, levels_from_one):
    """Another Euler sampler, on the same network, texts and noise."""
    config, found, data, _ = made
    network = found.transformer(torch.float32)
    text, null = (data.cache.get(key) for key in (data.prompts["a red circle"], data.null))
    pair = [(t["states"][None, : n], t["mask"][None, : n]) for t, n in ((text, None), (null, 1))]
    z = sampling.sana(network, found.params, config.sampling, *pair, (8, 8), 5, 6, 4.5, torch.device("cpu"))
    expected = embedded.sample(network, pair[0][0], pair[0][1], *pair[1], seeds=[5], steps=6, guidance=4.5)
    assert (z - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("begun", [False, True])
def test_sana_video_is_sampled_as_the_embedded_one_is(made, begun):
    """As above; the embedded one's sampler steps all frames and puts the given one back each time."""
    config, _, data, _ = made
    torch.manual_seed(0)
    network = embedded_video.build()
    with torch.no_grad():
        network.proj_out.weight.normal_(std=0.05)
    text, null = (data.cache.get(key) for key in (data.prompts["a red circle"], data.null))
    pair = [(t["states"][None, : n], t["mask"][None, : n]) for t, n in ((text, None), (null, 1))]
    first = torch.randn(1, 16, 1, 12, 12) if begun else None
    z = sampling.sana(network, network.params, config.sampling, *pair, (3, 12, 12), 5, 6, 4.5, torch.device("cpu"), first=first)
    expected = embedded_video.sample(network, (*pair[0], *pair[1]), seeds=[5], steps=6, guidance=4.5, start=first, frames=3)
    assert z.shape == (1, 16, 3, 12, 12) and (z - expected).norm() < 1e-4 * expected.norm()
    assert not begun or torch.equal(z[:, :, :1], first)


def test_pictures_are_the_same_each_time_and_in_their_files(made, tmp_path):
    config, found, data, built = made
    loss = recipe.Loss(built, data.scale)

    def draw():
        return validation.draw(lambda call: loss(None, None, run=call), data, found.params,
                               validation.decode(found, data.scale, torch.device("cpu")), torch.device("cpu"))
    pictures, again = draw(), draw()
    assert list(pictures) == ["a red circle", "a blue square"] and all(len(several) == 2 for several in pictures.values())
    assert all(torch.equal(a, b) for p in pictures for a, b in zip(pictures[p], again[p]))
    assert pictures["a red circle"][0].shape == (3, 1, 96, 64)
    path = validation.save(pictures, tmp_path, 7, None)
    sheet = Image.open(path)
    assert path.name == "step-000007.png" and sheet.size == (2 * 68, 2 * (96 + 22))


def test_losses_are_of_fixed_rows_noise_and_levels(made):
    config, found, data, built = made
    loss = recipe.Loss(built, data.scale)
    first = validation.losses(loss, data, found.params, [0.2, 0.8], torch.device("cpu"))
    torch.manual_seed(1)
    assert validation.losses(loss, data, found.params, [0.2, 0.8], torch.device("cpu")) == first
    assert set(first) == {"loss", "loss at 0.2", "loss at 0.8"}
    assert first["loss"] == pytest.approx((first["loss at 0.2"] + first["loss at 0.8"]) / 2)
    with torch.no_grad():
        built.network.proj_out.bias.add_(0.5)
    worse = validation.losses(loss, data, found.params, [0.2, 0.8], torch.device("cpu"))
    assert worse["loss"] > first["loss"]


def test_held_out_rows_are_never_trained_on(made):
    _, _, data, _ = made
    train, held_out = ({s.row.file for s in part} for part in (data.train, data.held_out))
    assert len(held_out) == 3 and not train & held_out
    again, _ = samples.split(list(reversed(data.train + data.held_out)), 0.4)
    assert {s.row.file for s in again} == train


def test_clip_is_written_and_read(tmp_path):
    clip = torch.linspace(-1, 1, 3 * 5 * 32 * 48).reshape(3, 5, 32, 48)
    validation.save({"moves": [clip]}, tmp_path, 3, 8.0)
    with av.open(str(tmp_path / "step-000003-0-0.mp4")) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert file.streams.video[0].average_rate == 8
    assert len(frames) == 5 and frames[0].shape == (32, 48, 3)
    assert abs(frames[2].astype(int) - validation.to_bytes(clip[:, 2])).mean() < 12
    assert Image.open(tmp_path / "step-000003.png").size == (3 * 48 + 4, 32 + 22)


def test_caches_are_used_again_and_a_changed_file_is_seen(tmp_path):
    run, told = loaded(tmp_path), []
    found = models.Models(run.config.model)
    folder = session.folder_of(run.config)

    def prepare():
        told.clear()
        return latents.prepare(run.config, found, folder, torch.device("cpu"), told.append)
    data = prepare()
    assert any("encoded 7 latents" in line for line in told)
    assert latents.stale(prepare()) == [] and not any("encoded" in line for line in told)
    Image.new("RGB", (90, 90), "red").save(tmp_path / "pictures" / "0.png")
    (tmp_path / "pictures" / "1.txt").write_text("another caption")
    again = prepare()
    assert [line for line in told if "encoded" in line] == ["encoded 1 captions", "encoded 1 latents"]
    assert {p.stem for p in latents.stale(again)} == {data.train[0].latent, *data.train[1].texts.values()}


def test_a_share_of_the_captions_stands_behind_the_instruction(tmp_path):
    """The same ones each time; the empty one never."""
    def keys(share):
        run = loaded(tmp_path, f"data.instruction={share}")
        for i in range(7):
            (tmp_path / "pictures" / f"{i}.txt").write_text(f"caption number {i}")
        data = latents.prepare(run.config, models.Models(run.config.model), session.folder_of(run.config), torch.device("cpu"),
                               lambda text: None)
        return [*(key for sample in data.train for key in sample.texts.values())], data.null
    (plain, null), (some, null_of_some), (all_of_them, null_of_all) = keys("false"), keys(0.5), keys("true")
    assert keys(1.0)[0] == all_of_them and keys(0)[0] == plain and keys(0.5)[0] == some
    assert null == null_of_some == null_of_all and not set(plain) & set(all_of_them)
    instructed = [key in all_of_them for key in some]
    assert all(key in (one, other) for key, one, other in zip(some, plain, all_of_them)) and 0 < sum(instructed) < 7


def test_report_shows_curves_and_pictures(tmp_path):
    run = loaded(tmp_path, "data.validation=0.3", "validation.every=2", "validation.prompts=[a red circle]", "validation.steps=1",
                 "sampling.width=64", "sampling.height=64", "output.tracker=tensorboard")
    session.train(run, lambda text: None)
    folder = session.folder_of(run.config)
    page = (folder / "report.md").read_text()
    assert "![curves](curves.png)" in page and page.count("![step-") == 3 and "| 4 | " in page and "held out" in page
    assert Image.open(folder / "curves.png").size == (run_report.WIDTH, 3 * run_report.HEIGHT)
    assert list(folder.rglob("events.out.tfevents*"))
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [e["step"] for e in lines if "validation_loss" in e] == [0, 2, 4]


def test_curve_goes_through_its_points(tmp_path):
    run_report.curves({"loss": [(1, 2.0), (2, 1.0), (3, 0.0)]}, tmp_path / "c.png")
    page = Image.open(tmp_path / "c.png")
    edge = run_report.EDGE
    assert page.getpixel(((edge + 26 + run_report.WIDTH - edge) // 2, run_report.HEIGHT // 2)) == (30, 90, 200)
    assert run_report.smooth([(i, float(i)) for i in range(1000)])[0] == (4, 2.0)
