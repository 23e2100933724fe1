"""A few steps of the trainings that start from the tiny Sana (Sprint, ControlNet, LoRA), and what they write is what the pack
loads. They are the trainer's: that it goes on where it stopped is tested in ../test_resume.py."""
import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from sanacog.host import lora_keys
from sanacog.sana_core import checkpoint, controlnet_checkpoint
from sanacog.sana_core.config import identify
from sanacog.sana_core.sampling import sprint_sigmas
from sanacog.commands import train_embedded as cli
from sanacog.evaluation.drawn import judge, shapes
from sanacog.training.embedded import controlnet, drawn_folders, lora, sana, sprint, transformer
from sanacog.training.embedded.autoencoder import to_numpy
from sanacog.training.embedded.recipe import read_file

FAMILIES = {"tiny-sprint": ("sprint", sprint), "tiny-controlnet": ("controlnet", controlnet),
            "tiny-lora": ("lora", lora)}


def train(family, folder, *more):
    smoke = ["--steps", "2", "--cached", "8", "--cases", "8", "--device", "cpu", "--work", str(folder / "work")]
    assert cli.main([family, *smoke, "--output", str(folder / "models"), *more]) == 0


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, tmp_path_factory):
    """(family, stage, module, folder with work/ and models/)"""
    folder = tmp_path_factory.mktemp(request.param)
    train(request.param, folder)
    return request.param, *FAMILIES[request.param], folder


def test_options_of_other_stages_are_refused(trained, tmp_path):
    family, stage, _, _ = trained
    with pytest.raises(SystemExit, match="give --steps in place of --minutes or --stop-at"):
        train(family, tmp_path, "--stage", stage, "--stop-at", "1")


def test_written_file(trained):
    _, stage, module, folder = trained
    tensors, config = load_file(folder / "models" / module.FILE), None
    if stage != "lora":
        config = read_file(folder / "models" / module.FILE)[1]
    assert all(t.dtype == torch.float16 for t in tensors.values())
    assert (folder / "models" / module.FILE).stat().st_size < 8e6
    shapes_of = {k: tuple(v.shape) for k, v in tensors.items()}
    if stage == "sprint":
        found = identify(shapes_of, config, module.FILE)
        assert found.params == sprint.PARAMS and found.params.guidance_embeds
        checkpoint.check_shapes(shapes_of, found)
    elif stage == "lora":
        base = sana.load_models(cli.MODELS)[3]
        found = lora_keys.read(tensors, [name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)])
        assert len(found.model) == 6 * 10 and not found.unmatched
        assert all(len(part[lora_keys.DOWN]) == lora.RANK for part in found.model.values())
    else:
        found = controlnet_checkpoint.identify_controlnet(shapes_of, config, module.FILE)
        assert found.params == replace(transformer.PARAMS, num_layers=controlnet.BLOCKS)
        assert (found.layout, found.wiring) == ("diffusers", "diffusers")
        controlnet_checkpoint.check_shapes(shapes_of, found)


def test_chapter_says_what_was_measured(trained):
    _, stage, module, folder = trained
    text = (folder / "models" / "README.md").read_text()
    figures = json.loads((folder / "work" / "figures.json").read_text())
    row, name = {"sprint": ("2 steps", "colour+background+shape"), "controlnet": ("with control", "mean"),
                 "lora": ("with the LoRA", "background")}[stage]
    assert f"{figures[row][name]:.3f}" in text and module.FILE in text
    pictures = re.findall(r"\]\((\w+\.png)\)", text)
    assert len(pictures) > 1 and all((folder / "models" / picture).stat().st_size > 1000 for picture in pictures)


def test_sprint_sample_walks_down_its_levels():
    seen = []

    def model(x, sigma, states, mask, guidance):
        seen.append((float(sigma[0]), float(guidance[0])))
        return torch.zeros_like(x)

    states, mask = torch.zeros(2, 3, 96), torch.ones(2, 3)
    first = sprint.sample(model, states, mask, None, None, steps=2, guidance=4.5, seeds=[1, 2])
    again = sprint.sample(model, states[:1], mask[:1], None, None, steps=2, guidance=4.5, seeds=[2])
    assert seen[:2] == [(float(s), 4.5) for s in sprint_sigmas(2)[:2]]
    assert torch.equal(first[1:], again)  # a picture depends on its own seed alone


def test_the_shipped_lora_acts_on_a_copy_of_the_base():
    base, inputs = sana.load_models(cli.MODELS)[3], (torch.randn(1, 32, 8, 8), torch.full((1,), 500.0), torch.randn(1, 4, 96), torch.ones(1, 4))
    with torch.no_grad():
        plain = base(*inputs)
        changed = lora.load_lora(cli.MODELS / lora.FILE, base)(*inputs)
        assert torch.equal(base(*inputs), plain)
    assert (changed - plain).norm() > 0.05 * plain.norm()


def test_drawn_folders_are_the_same_again_and_only_drawn_once(tmp_path):
    def rows(folder):
        return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    plans = (lora.plan, controlnet.plan, sana.plan)
    for plan in plans:
        first, second = (tmp_path / f"{place}_{plan.__module__}" for place in "ab")
        drawn_folders.write(first, 34, plan)  # more than a part
        drawn_folders.write(second, 34, plan)
        assert rows(first) == rows(second) and len(rows(first)) == 34 and all(row["text"] for row in rows(first))
        pictures = [row[column] for row in rows(first) for column in row if column != "text"]
        assert len(pictures) == 34 * (2 if plan is controlnet.plan else 1)
        assert all((first / name).read_bytes() == (second / name).read_bytes() for name in pictures)
        kept = (second / pictures[-1]).stat().st_mtime_ns
        (second / pictures[0]).unlink()
        drawn_folders.write(second, 34, plan)
        assert (second / pictures[0]).read_bytes() == (first / pictures[0]).read_bytes()
        assert (second / pictures[-1]).stat().st_mtime_ns == kept  # of another part, which was whole


def test_the_judge_sees_outlines():
    scenes = shapes.evaluation_scenes()[0]
    scenes = scenes[lora.can_be_outlined(scenes)][:24]
    colours = lora.outline_colours(scenes)
    assert set(colours.tolist()) == {lora.BLACK, lora.WHITE}
    assert not (scenes[:, [shapes.COLOUR, shapes.BACKGROUND]] == colours[:, None]).any()
    for width, right in ((lora.WIDTH, 22), (-1.0, 0)):
        pictures = to_numpy(lora.draw(scenes, torch.Generator().manual_seed(1), width))
        found = [judge.outlined(p, int(s[shapes.COLOUR]), int(c)) for p, s, c in zip(pictures, scenes, colours)]
        assert sum(found) >= right if right else not any(found)
    absent = next(c for c in range(len(shapes.COLOURS)) if c not in (*scenes[0, [shapes.COLOUR, shapes.BACKGROUND]].tolist(), colours[0]))
    picture = to_numpy(lora.draw(scenes[:1], torch.Generator()))[0]
    assert not judge.outlined(picture, absent, int(colours[0])) and not judge.outlined(picture, int(scenes[0, shapes.COLOUR]), absent)


def test_black_beside_white_is_left_out():
    scenes = torch.tensor([[lora.BLACK, 0, lora.WHITE, 0, 0], [lora.WHITE, 0, lora.BLACK, 0, 0], [lora.BLACK, 0, 1, 0, 0], [0, 0, 1, 0, 0]])
    assert lora.can_be_outlined(scenes).tolist() == [False, False, True, True]
    drawn = lora.sample_scenes(300, torch.Generator().manual_seed(0))
    assert len(drawn) == 300 and lora.can_be_outlined(drawn).all()


def test_edges_lie_on_the_outline():
    scenes, distance = controlnet.cases(8)
    soft, hard = (controlnet.edges(distance, torch.full((8,), 2.0), mode) for mode in (None, torch.ones(8, dtype=torch.bool)))
    assert soft.shape == (8, 3, 256, 256) and set(hard.unique().tolist()) == {-1.0, 1.0}
    near = distance.abs() < 0.5
    assert (soft[:, :1][near] == 1).all() and (soft[:, :1][distance.abs() > 1.5] == -1).all()


def test_cases_differ_in_place_and_size_and_cover_the_shapes():
    scenes, distance = controlnet.cases()
    masks = [judge.shape_mask(p) for p in to_numpy(controlnet.paint(scenes, distance))]
    assert scenes[:, shapes.SHAPE].unique().tolist() == [0, 1, 2, 3]
    same = [judge.overlap(a, b) for i, a in enumerate(masks) for b in masks[:i]]
    assert sum(o > controlnet.WANTED for o in same) < 0.1 * len(same)
    assert all(judge.overlap(m, m) == 1.0 for m in masks)
