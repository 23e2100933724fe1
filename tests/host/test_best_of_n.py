"""Best of N in the real host: by the judge on drawn pictures, by a CLIP of random weights, and the shipped workflow."""

import json

import numpy as np
import pytest
import torch

from sanacog.app.graph import filled
from sanacog.evaluation.drawn import clips, obedience, shapes, words
from sanacog.headless.installation import ROOT

from ..evaluation import clip_folder, vlm_folder
from .tiny import import_host

PROMPT = "a large red circle on a blue background"


@pytest.fixture(scope="module")
def best_of_n(comfyui_path):
    import_host(comfyui_path)
    from sanacog.host import best_of_n

    return best_of_n


@pytest.fixture(scope="module")
def pictures():
    """A green circle, a red ring, the right one, a small red circle; (4, 256, 256, 3)."""
    scenes = torch.tensor([[1, 0, 2, 0, 4], [0, 3, 2, 0, 4], [0, 0, 2, 0, 4], [0, 0, 2, 1, 4]])
    return shapes.draw(scenes).movedim(1, -1) / 2 + 0.5


def test_the_judge_keeps_the_picture_that_obeys(best_of_n, pictures):
    best, scores, index = best_of_n.best_of(pictures, PROMPT, best_of_n.JUDGE)
    assert index == 2 and torch.equal(best, pictures[2:3])
    lines = scores.splitlines()
    assert [line.split(":")[0] for line in lines] == ["0", "1", "2", "3"]
    assert [line.endswith("kept") for line in lines] == [False, False, True, False]
    best, _, index = best_of_n.best_of(pictures[:2], "a red ring on a blue background", best_of_n.JUDGE, keep=2)
    assert index == 1 and torch.equal(best, pictures[:2].flip(0))


def test_clips_are_kept_whole(best_of_n):
    """One that moves the other way, the right one, one of another colour."""
    scenes = torch.tensor([[0, 0, 2, 1], [0, 0, 2, 0], [3, 0, 2, 0]])
    drawn = clips.draw(scenes).movedim(1, -1) / 2 + 0.5
    frames = drawn.shape[1]
    prompt = clips.plain_prompt(scenes[1].tolist())
    best, scores, index = best_of_n.best_of(drawn.flatten(0, 1), prompt, best_of_n.JUDGE, frames=frames)
    assert index == 1 and torch.equal(best, drawn[1]) and len(scores.splitlines()) == 3
    best = best_of_n.best_of(drawn.flatten(0, 1), prompt, best_of_n.JUDGE, keep=3, frames=frames)[0]
    assert torch.equal(best[:frames], drawn[1]) and len(best) == 3 * frames


def test_of_clips_that_obey_the_one_with_the_better_shape():
    shown = clips.draw(torch.tensor([[0, 0, 2, 0]])).movedim(1, -1)[0].numpy() / 2 + 0.5
    wanted = words.read(clips.plain_prompt([0, 0, 2, 0]))
    worse = shown.copy()
    worse[:, :, ::6] = shown[:, :, 5::6]
    assert all(obedience.obeys(shown, wanted, "clips").values())
    assert obedience.score(worse, wanted, "clips") < obedience.score(shown, wanted, "clips")


def test_equal_ones_stay_in_order(best_of_n, pictures):
    assert best_of_n.best_of(pictures[2:3].repeat(3, 1, 1, 1), PROMPT, best_of_n.JUDGE, keep=3)[2] == 0


def test_a_clip_keeps_what_its_own_cosine_says(best_of_n, pictures, tmp_path, monkeypatch):
    import folder_paths
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    folder = clip_folder.make(tmp_path / "clip_vision" / "tiny")
    (tmp_path / "clip_vision" / "other").mkdir()
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda kind: [str(tmp_path / kind), str(tmp_path / "gone")])
    assert best_of_n.clip_folders() == ["none", "tiny"]
    model = CLIPModel.from_pretrained(folder).eval()
    given = CLIPTokenizer.from_pretrained(folder)(["a lighthouse"], return_tensors="pt")
    eight_bits = [(one.numpy() * 255).round().astype(np.uint8) for one in pictures]
    given |= CLIPImageProcessor.from_pretrained(folder)(eight_bits, return_tensors="pt")
    with torch.inference_mode():
        wanted = model(**given).logits_per_image[:, 0] / model.logit_scale.exp()
    assert wanted.argmax() != wanted.argmin()
    order = wanted.argsort(descending=True).tolist()
    best, scores, index = best_of_n.best_of(pictures, "a lighthouse", best_of_n.CLIP, "tiny", keep=2)
    assert index == order[0] and torch.equal(best, pictures[order[:2]])
    told = [float(line.split()[1]) for line in scores.splitlines()]
    assert told == pytest.approx((100 * wanted).tolist(), abs=2e-3)


def test_a_vision_language_model_keeps_what_it_answers_yes_to(best_of_n, pictures, tmp_path, monkeypatch):
    """In a folder of a folder, as other packs keep them; two clips of two frames are asked about as clips."""
    import folder_paths

    vlm_folder.make(tmp_path / "LLM" / "Qwen-VL" / "tiny")
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    assert best_of_n.vlm_folders() == ["none", "Qwen-VL/tiny"]
    pictures = pictures.flip(0)  # so that the first is not the best
    question = 'Does this {} show "a lighthouse"? Please answer yes or no.'
    wanted = [vlm_folder.yes(tmp_path / "LLM" / "Qwen-VL" / "tiny", [one], question.format("picture")) for one in pictures]
    assert len(set(wanted)) == 4 and wanted[0] < max(wanted)
    best, scores, index = best_of_n.best_of(pictures, "a lighthouse", best_of_n.VLM, vlm_folder="Qwen-VL/tiny")
    assert index == wanted.index(max(wanted)) and torch.equal(best, pictures[index:index + 1])
    assert [float(line.split()[1]) for line in scores.splitlines()] == pytest.approx(wanted, abs=6e-5)
    wanted = [vlm_folder.yes(tmp_path / "LLM" / "Qwen-VL" / "tiny", clip, question.format("clip")) for clip in pictures.split(2)]
    _, scores, _ = best_of_n.best_of(pictures, "a lighthouse", best_of_n.VLM, vlm_folder="Qwen-VL/tiny", frames=2)
    assert [float(line.split()[1]) for line in scores.splitlines()] == pytest.approx(wanted, abs=6e-5)


def test_a_model_that_only_captions_is_refused(best_of_n, pictures, tmp_path, monkeypatch):
    """Before its weights are read."""
    import folder_paths

    folder = vlm_folder.make(tmp_path / "LLM" / "captioner")
    for place in folder.glob("*.safetensors"):
        place.unlink()
    (folder / "chat_template.jinja").unlink()
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    with pytest.raises(ValueError, match="captioner: has no chat template.*hf download"):
        best_of_n.best_of(pictures, "a lighthouse", best_of_n.VLM, vlm_folder="captioner")


@pytest.mark.parametrize("change, message", [
    ({"prompt": "a lighthouse at dusk"}, "no prompt that the judge of the embedded models can judge by"),
    ({"prompt": " "}, "The prompt is empty"),
    ({"prompt": "a red circle moving left on a blue background"}, "asks for a motion"),
    ({"frames": 2}, "asks for no motion"), ({"frames": 3}, "no whole clips"),
    ({"frames": 2, "keep": 3}, "there are 2 clips"),
    ({"keep": 5}, "keep is 5, and there are 4 pictures"),
    ({"verifier": "CLIP"}, "needs one in models/clip_vision.*hf download"),
    ({"verifier": "CLIP", "clip_folder": "gone"}, "clip_folder is 'gone'"),
    ({"verifier": "vision-language model"}, "vlm_folder is 'none'.*models/LLM; there is none yet.*hf download"),
    ({"images": torch.full((4, 64, 64, 3), float("nan"))}, "not finite")])
def test_what_cannot_be_judged_is_said(best_of_n, pictures, change, message):
    with pytest.raises(ValueError, match=message):
        best_of_n.best_of(**({"images": pictures, "prompt": PROMPT, "verifier": best_of_n.JUDGE} | change))


def test_clips_of_a_batch(server):
    """Three clips that the embedded CogVideoX draws at once; two are kept, whole."""
    workflow = json.loads((ROOT / "workflows" / "api" / "cogvideox_text_to_video.json").read_text("utf-8"))
    latent = next(node["inputs"] for node in workflow.values() if node["class_type"] == "SanaCogEmptyCogVideoXLatent")
    latent["batch_size"] = 3
    prompt = next(node["inputs"]["text"] for node in workflow.values() if node["class_type"] == "CLIPTextEncode")
    key, saved = next((key, node) for key, node in workflow.items() if node["class_type"] == "SaveAnimatedWEBP")
    best = {"class_type": "SanaCogBestOfN", "inputs": {
        "images": saved["inputs"]["images"], "prompt": prompt, "verifier": "judge of the embedded models", "clip_folder": "none",
        "keep": 2, "frames": latent["length"]}}
    workflow = {name: node for name, node in workflow.items() if node["class_type"] not in ("CreateVideo", "SaveVideo")}
    workflow |= {"best": best, key: saved | {"inputs": saved["inputs"] | {"images": ["best", 0]}}}
    clip, = server.run_prompt(workflow).clips.values()
    kept = clip.reshape(2, latent["length"], *clip.shape[1:])
    wanted = words.read(prompt)
    scores = [obedience.score(one / 255, wanted, "clips") for one in kept]
    assert scores[0] >= scores[1] > 0.5 and not np.array_equal(*kept)


def test_the_shipped_workflow(server):
    workflow = json.loads((ROOT / "workflows" / "api" / "sana_best_of_n.json").read_text("utf-8"))
    prompt = next(node for node in workflow.values() if "value" in node["inputs"])["inputs"]["value"]
    result = server.run_prompt(workflow)
    kept = [name for name in result.clips if name.startswith("best")]
    all_four = [clip[0] for name, clip in sorted(result.clips.items()) if name not in kept]
    wanted = words.read(prompt)
    scores = [obedience.score(picture[None] / 255, wanted) for picture in all_four]
    assert len(kept) == 1 and len(all_four) == 4 and len(set(scores)) > 1
    assert np.array_equal(result.clips[kept[0]][0], all_four[int(np.argmax(scores))])
    assert all(obedience.obeys(result.clips[kept[0]] / 255, wanted).values())
    said = server.expect_error(filled(workflow, {"value": "a lighthouse"}))
    assert "no prompt that the judge of the embedded models can judge by" in said
