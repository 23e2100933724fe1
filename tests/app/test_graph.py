"""Filling a shipped workflow: what goes where, that nothing else changes, and that the canvas' file follows."""

import copy
import json

import pytest

from sanacog.app import graph
from sanacog.app.tasks import TASKS

NAMES = sorted({name for task in TASKS for name in (task.embedded, task.released, task.guided) if name})
VIDEOS = "cogvideox_text_to_video", "sana_to_cogvideox"  # of `run.py demo`


def values(workflow, name):
    return [node["inputs"][name] for node in workflow.values() if name in node["inputs"]]


def test_prompts_go_to_their_sides():
    workflow = graph.shipped("sana_controlnet")
    before = copy.deepcopy(workflow)
    filled = graph.filled(workflow, {"seed": 7, "steps": 12, "guidance": 3.5}, "a ring", "a cross")
    assert (values(filled, "seed"), values(filled, "steps"), values(filled, "cfg")) == ([7], [12], [3.5])
    assert (filled["5"]["inputs"]["text"], filled["6"]["inputs"]["text"]) == ("a ring", "a cross")
    assert workflow == before


def test_what_is_none_stays():
    filled = graph.filled(graph.shipped("sana_quickstart"), {"steps": None}, "a ring")
    assert values(filled, "steps") == [20] and filled["5"]["inputs"]["text"] == ""


@pytest.mark.parametrize("name", VIDEOS)
def test_one_prompt_reaches_every_encoder_but_the_negatives(name):
    workflow = graph.shipped(name)
    filled = graph.filled(workflow, {"seed": 7, "steps": 3}, "a blue ring")
    before, after = ([text for key in ("text", "value") for text in values(one, key) if isinstance(text, str)]
                     for one in (workflow, filled))
    assert sorted(after) == sorted(["a blue ring", *[""] * before.count("")]) and len(before) == len(after)
    assert set(values(filled, "seed")) == {7} and set(values(filled, "steps")) == {3}


@pytest.mark.parametrize("name", [name for name in NAMES if "sana_video" in name])
def test_a_clip_of_sana_video(name):
    """Every value that its tabs give has its place, and prompts keep what stands round them."""
    chosen = {"model_name": "a", "text_encoder_name": "b", "vae_name": "c", "steps": 7, "guidance": 2.5, "seed": 3, "frames": 9,
              "fps": 5, "width": 64, "height": 32}
    workflow = graph.shipped(name)
    filled = graph.filled(workflow, chosen, "a ring", "a cross")
    assert [values(filled, key)[0] for key in ("model_name", "vae_name", "steps", "length", "width", "height", "cfg")] == [
        "a", "c", 7, 9, 64, 32, 2.5]
    assert values(filled, "fps") == [5, 5] and values(filled, "noise_seed") + values(filled, "seed") == [3]
    assert dict(zip(values(filled, "text"), values(filled, "motion_score"))) == {"a ring": 30, "a cross": 0}


def test_links_stay_but_a_size_gives_way():
    filled = graph.filled(graph.shipped("sana_sprint"), {"width": 256, "height": 256})
    latent = next(node["inputs"] for node in filled.values() if node["class_type"] == "SanaCogEmptySanaLatent")
    assert (latent["width"], latent["height"]) == (256, 256)
    video = graph.shipped("cogvideox_video_to_video")
    assert values(graph.filled(video, {"fps": None}), "fps") == values(video, "fps")


@pytest.mark.parametrize("fill", [{"length": 9}, {"control_net_name": "x"}, {"fps": 8}])
def test_a_value_without_a_place_is_an_error(fill):
    with pytest.raises(KeyError, match=next(iter(fill))):
        graph.filled(graph.shipped("sana_quickstart"), fill)
    with pytest.raises(KeyError, match="negative prompt"):
        graph.filled(graph.shipped("sana_sprint"), {}, "a ring", "a cross")


@pytest.mark.parametrize("name", NAMES)
def test_a_lora_is_between_the_model_and_all_that_use_it(name):
    workflow = graph.shipped(name)
    loader = next(key for key, node in workflow.items() if "model_name" in node["inputs"])
    new, = set(with_it := graph.with_lora(workflow, "x.safetensors", 0.5)) - set(workflow)
    assert with_it[new]["inputs"]["model"] == [loader, 0]
    assert (values(with_it, "lora_name"), values(with_it, "strength_model")) == (["x.safetensors"], [0.5])
    assert not [key for key, node in with_it.items() if key != new and [loader, 0] in node["inputs"].values()]
    assert graph.canvas(name, with_it) is None


@pytest.mark.parametrize("name", NAMES)
def test_the_canvas_file_is_what_it_was_when_nothing_was_chosen(name):
    assert graph.canvas(name, graph.shipped(name)) == json.loads((graph.WORKFLOWS / f"{name}.json").read_text("utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_the_canvas_file_follows_each_value(name):
    """Every value of the workflow in turn: another one is found at exactly one place of the canvas' file, and alone there."""
    workflow = graph.shipped(name)
    kept = {(str(node["id"]), place["name"]) for node in graph.canvas(name, workflow)["nodes"] for place in node.get("inputs", ())
            if "widget" in place}  # inputs that came later are in no older file
    plain = {node["id"]: node.get("widgets_values") for node in graph.canvas(name, workflow)["nodes"]}
    tried = 0
    for key, node in workflow.items():
        for place, value in node["inputs"].items():
            if isinstance(value, list) or (key, place) not in kept:
                continue
            other = copy.deepcopy(workflow)
            other[key]["inputs"][place] = "another"
            drawn = {node["id"]: node.get("widgets_values") for node in graph.canvas(name, other)["nodes"]}
            changed = [(old, new) for id, olds in plain.items() if olds for old, new in zip(olds, drawn[id]) if old != new]
            assert changed == [(value, "another")], f"{node['class_type']}.{place}"
            tried += 1
    assert tried > 10


def test_a_changed_wiring_has_no_canvas_file():
    assert graph.canvas("sana_sprint", graph.filled(graph.shipped("sana_sprint"), {"width": 256})) is None
