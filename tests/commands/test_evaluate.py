"""`run.py evaluate` on folders of drawn pictures, and its drawing with a stand-in for ComfyUI."""

import io
import json
import re

import av
import numpy as np
import pytest
import torch
from PIL import Image

from sanacog.app.graph import shipped
from sanacog.commands import evaluate, evaluate_drawing
from sanacog.evaluation import distances, files
from sanacog.evaluation.clip import Clip
from sanacog.evaluation.drawn import clips, shapes
from sanacog.evaluation.image_reward import ImageReward

from ..evaluation import clip_folder, reward_folder, vlm_folder


def folder_of(place, scenes, prompts):
    place.mkdir()
    for i, picture in enumerate(shapes.draw(torch.tensor(scenes)).movedim(1, -1)):
        Image.fromarray(((picture + 1) * 127.5).round().byte().numpy()).save(place / f"{i}.png")
        (place / f"{i}.txt").write_text(prompts[i])
    return place


RED, GREEN = [0, 0, 2, 0, 4], [1, 0, 2, 0, 4]  # large circles on blue


@pytest.fixture
def pictures(tmp_path):
    """Two of either prompt: of the first the second is right, of the second both."""
    red, green = shapes.plain_prompt(RED), shapes.plain_prompt(GREEN)
    return folder_of(tmp_path / "pictures", [GREEN, GREEN, RED, GREEN], [red, green, red, green])


def report(output):
    return json.loads((output / "evaluation.json").read_text())


def test_a_folder(pictures, tmp_path, capsys):
    assert evaluate.main(["--pictures", str(pictures), "--output", str(tmp_path / "out")]) == 0
    found = report(tmp_path / "out")["figures"]["all"]
    assert found == {"files": 4, "judged": 4, "colour": 0.75, "shape": 1, "background": 1, "size": 1, "place": 1,
                     "all": 0.75}
    assert "colour                                 0.750" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert [all(row["obeys"].values()) for row in rows] == [False, True, True, True]
    assert Image.open(tmp_path / "out" / "contact_sheet.png").width == 12 + 4 * 268


def test_the_best_of_a_folder(pictures, tmp_path, capsys):
    arguments = ["--pictures", str(pictures), "--output", str(tmp_path / "out"), "--at-least", "0.9"]
    assert evaluate.main(arguments) == 1
    assert evaluate.main([*arguments, "--best-of", "2"]) == 0
    found = report(tmp_path / "out")
    assert [group["all"] for group in found["figures"].values()] == [0.5, 1.0] and found["options"]["verifier"] == "judge"
    assert evaluate.main([*arguments, "--best-of", "3"]) == 2
    assert "has 2 pictures, and the best of 3" in capsys.readouterr().err


def test_scores_and_distances_by_a_clip(pictures, tmp_path):
    folder = clip_folder.make(tmp_path / "clip")
    reference = folder_of(tmp_path / "reference", [RED, [3, 1, 0, 1, 2], GREEN], ["", "", ""])
    assert evaluate.main(["--pictures", str(pictures), "--reference", str(reference), "--clip", str(folder), "--preference",
                          str(folder), "--output", str(tmp_path / "out")]) == 0
    found, ours = report(tmp_path / "out")["figures"]["all"], Clip(folder)
    one, other = ([files.frames(item.path)[0] for item in files.items(place)] for place in (pictures, reference))
    texts = ours.texts([item.prompt for item in files.items(pictures)])
    cosine = float((ours.pictures(one) * texts).sum(1).mean())
    assert found["clip_score"] == pytest.approx(100 * cosine, abs=1e-3)
    assert found["preference"] == pytest.approx(ours.scale * cosine, abs=1e-3)
    assert found["CLIP-FID"] == pytest.approx(distances.fid(ours.pictures(one), ours.pictures(other)), rel=1e-4)
    assert found["CLIP-KID"] == pytest.approx(distances.kid(ours.pictures(one), ours.pictures(other)), rel=1e-4)


def test_a_vision_language_model_is_asked(pictures, tmp_path):
    """Of a prompt that no judge can read, too."""
    folder = vlm_folder.make(tmp_path / "vlm")
    place = folder_of(tmp_path / "two", [RED, GREEN], ["a lighthouse"] * 2)
    arguments = ["--pictures", str(place), "--vlm", str(folder), "--output", str(tmp_path / "out")]
    assert evaluate.main([*arguments, "--best-of", "2", "--verifier", "vlm"]) == 0
    found = report(tmp_path / "out")["figures"]
    shown = [torch.from_numpy(files.frames(item.path)) for item in files.items(place)]
    wanted = [vlm_folder.yes(folder, frames, 'Does this picture show "a lighthouse"? Please answer yes or no.') for frames in shown]
    assert wanted[0] != pytest.approx(wanted[1], abs=1e-4)
    assert found["first of each prompt"]["vlm_score"] == pytest.approx(wanted[0], abs=6e-5)
    assert found["best of 2"]["vlm_score"] == pytest.approx(max(wanted), abs=6e-5)


def test_image_reward_chooses(tmp_path):
    folder = reward_folder.make(tmp_path / "reward")
    place = folder_of(tmp_path / "two", [RED, GREEN], ["a red sky"] * 2)
    assert evaluate.main(["--pictures", str(place), "--image-reward", str(folder), "--output", str(tmp_path / "out"), "--best-of", "2",
                          "--verifier", "image_reward"]) == 0
    found = report(tmp_path / "out")["figures"]
    wanted = ImageReward(folder).scores([files.frames(item.path)[0] for item in files.items(place)], ["a red sky"] * 2)
    assert abs(wanted[0] - wanted[1]) > 1e-3
    assert found["first of each prompt"]["image_reward"] == pytest.approx(wanted[0], abs=6e-5)
    assert found["best of 2"]["image_reward"] == pytest.approx(wanted.max(), abs=6e-5)


@pytest.mark.parametrize("arguments, message", [
    (["--pictures", "gone"], "no such folder"),
    (["--pictures", ".", "--reference", "."], "--reference needs --clip.*hf download"),
    (["--pictures", ".", "--clip", "gone"], "gone: no such folder.*hf download"),
    (["--pictures", ".", "--best-of", "2", "--verifier", "clip"], "--verifier clip needs --clip.*hf download"),
    (["--pictures", ".", "--best-of", "2", "--verifier", "vlm"], "--verifier vlm needs --vlm.*that chats"),
    (["--pictures", ".", "--best-of", "2", "--verifier", "image_reward"], "needs --image-reward.*THUDM/ImageReward"),
    (["--pictures", ".", "--image-reward", "gone"], "gone: no such folder.*hf download"),
    (["--pictures", ".", "--vlm", "gone"], "gone: a folder with a vision-language model"),
    (["--workflow", "gone"], "gone: no such workflow"),
    (["--workflow", "sana_quickstart", "--prompts", "gone"], "--prompts gone: neither a file nor one of pictures")])
def test_what_is_missing_is_said(arguments, message, tmp_path, capsys):
    assert evaluate.main([*arguments, "--output", str(tmp_path)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_pictures_of_which_nothing_can_be_said(tmp_path, capsys):
    place = folder_of(tmp_path / "pictures", [RED], ["a lighthouse"])
    assert evaluate.main(["--pictures", str(place), "--output", str(tmp_path / "out")]) == 2
    assert "nothing could be measured" in (said := capsys.readouterr().err) and "hf download" in said
    assert not (tmp_path / "out").exists()


# --- drawing ---


class StandIn:
    """A ComfyUI that draws what it is told in words; every file is asked for by the number of the run."""

    def __init__(self, fail_at=None):
        self.runs, self.fail_at, self.count = [], fail_at, 1

    def run(self, graph, timeout_s):
        if len(self.runs) == self.fail_at:
            raise OSError("gone")
        self.runs.append(graph)
        return self

    def files(self):
        return [{"filename": f"{len(self.runs)}_{i}"} for i in range(self.count)]

    def file(self, entry):
        number, frame = map(int, entry["filename"].split("_"))
        data = io.BytesIO()
        Image.fromarray(np.random.default_rng(10 * number + frame).integers(0, 256, (16, 24, 3), np.uint8)).save(data, "PNG")
        return data.getvalue()


def drawn(client, folder, best_of=2, seed=5, prompts=("one", "two"), name="sana_quickstart"):
    nodes = evaluate_drawing.workflow(name)
    wanted = evaluate_drawing.names(list(prompts), best_of, evaluate_drawing.shows_clips(nodes))
    evaluate_drawing.draw(client, nodes, wanted, folder, seed, 3, lambda *_: None)
    return wanted


def told(graph):
    sampler = next(node["inputs"] for node in graph.values() if node["class_type"] == "KSampler")
    return graph[sampler["positive"][0]]["inputs"]["text"], sampler["seed"], sampler["steps"]


def test_seeds_prompts_and_going_on(tmp_path):
    first = StandIn(fail_at=3)
    with pytest.raises(OSError):
        drawn(first, tmp_path)
    assert [told(graph) for graph in first.runs] == [("one", 5, 3), ("two", 6, 3), ("one", 1005, 3)]
    second = StandIn()
    drawn(second, tmp_path)
    assert [told(graph) for graph in second.runs] == [("two", 1006, 3)]
    third = StandIn()
    drawn(third, tmp_path)
    drawn(third, tmp_path, prompts=("one", "two", "three"), best_of=1)
    assert [told(graph) for graph in third.runs] == [("three", 7, 3)]
    assert [(item.path.name, item.prompt) for item in files.items(tmp_path)] == [
        ("0000_0.png", "one"), ("0000_1.png", "one"), ("0001_0.png", "two"), ("0001_1.png", "two"), ("0002_0.png", "three")]


@pytest.mark.parametrize("change", [{"seed": 6}, {"prompts": ("one", "other")}, {"name": "sana_sprint"}])
def test_pictures_of_another_run_are_not_taken(tmp_path, change):
    drawn(StandIn(), tmp_path)
    with pytest.raises(ValueError, match="drawn by another workflow, seed or prompts"):
        drawn(StandIn(), tmp_path, **change)


def test_clips_keep_every_bit(tmp_path):
    client = StandIn()
    client.count = 5
    (_, _, _, name), = drawn(client, tmp_path, 1, prompts=("one",), name="cogvideox_text_to_video")
    wanted = [np.array(Image.open(io.BytesIO(client.file({"filename": f"1_{i}"})))) for i in range(5)]
    assert name == "0000_0.mkv" and np.array_equal(np.round(files.frames(tmp_path / name) * 255), wanted)
    with av.open(str(tmp_path / name)) as file:
        assert file.streams.video[0].average_rate == 16  # the workflow's
    assert evaluate_drawing.rate_of(shipped("cogvideox_video_to_video")) == 8  # it has the loaded video's


def test_what_a_workflow_shows():
    best = evaluate_drawing.with_frames_shown(shipped("sana_best_of_n"))  # its previews show all four
    node = next(key for key, node in best.items() if node["class_type"] == "SanaCogBestOfN")
    assert best["evaluate"]["inputs"]["images"] == [node, 0]
    clip = evaluate_drawing.with_frames_shown(shipped("sana_to_cogvideox"))
    assert [node["class_type"] for node in clip.values()].count("PreviewImage") == 1
    assert not any(node["class_type"].startswith(("Save", "CreateVideo")) for node in clip.values())
    with pytest.raises(ValueError, match="saves 0 different"):
        evaluate_drawing.with_frames_shown({"1": {"class_type": "EmptyImage", "inputs": {}}})


def test_clips_of_a_folder(tmp_path):
    scenes = torch.tensor([[0, 0, 2, 1], [3, 1, 5, 2]])
    for i, frames in enumerate(clips.to_frames(clips.draw(scenes))):
        data = [io.BytesIO() for _ in frames]
        for buffer, frame in zip(data, frames):
            Image.fromarray((frame * 255).round().astype(np.uint8)).save(buffer, "PNG")
        (tmp_path / f"{i}.mkv").write_bytes(evaluate_drawing.video([buffer.getvalue() for buffer in data]))
        (tmp_path / f"{i}.txt").write_text(clips.plain_prompt(scenes[0]))
    assert evaluate.main(["--pictures", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    found = report(tmp_path / "out")["figures"]["all"]
    assert (found["direction"], found["all"], found["trembling"]) == (0.5, 0.5, 0) and found["motion"] > 1
    assert Image.open(tmp_path / "out" / "contact_sheet.png").width == 4 + 9 * 100
