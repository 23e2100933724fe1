"""CLIP scores beside the network of the same folder, run here step by step."""

import json

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from sanacog.evaluation import clip

from . import clip_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return clip_folder.make(tmp_path_factory.mktemp("clip"))


def words_to_ids(text):
    """The tokenizer's letters, written out."""
    ids = [0]
    for word in text.split():
        ids += [2 + ord(letter) - ord("a") for letter in word[:-1]] + [28 + ord(word[-1]) - ord("a")]
    return [*ids, 1]


def test_scores_beside_a_computation_of_their_own(folder):
    rng = np.random.default_rng(0)
    pictures = [(rng.integers(0, 256, (clip_folder.SIDE, clip_folder.SIDE, 3)) / 255).astype(np.float32) for _ in range(3)]
    prompts = ["a red cat", "sky", "a"]
    model = CLIPModel.from_pretrained(folder).double().eval().requires_grad_(False)
    cosines = []
    for picture, prompt in zip(pictures, prompts):
        pixels = (torch.from_numpy(picture).double() - torch.tensor(clip_folder.MEAN)) / torch.tensor(clip_folder.DEVIATION)
        with torch.no_grad():
            out = model(pixel_values=pixels.double().permute(2, 0, 1)[None], input_ids=torch.tensor([words_to_ids(prompt)]))
        cosines.append(float(out.logits_per_image / model.logit_scale.exp()))
    ours = clip.Clip(folder)
    assert clip.scores(ours, pictures, prompts) == pytest.approx([100 * value for value in cosines], abs=2e-4)
    scale = float(model.logit_scale.exp())
    assert scale > 10
    assert clip.preferences(ours, pictures, prompts) == pytest.approx([scale * value for value in cosines], abs=2e-4)
    assert min(cosines) < -0.02 and max(cosines) > 0.02


def test_pictures_of_any_size_and_long_prompts(folder):
    ours = clip.Clip(folder)
    features = ours.pictures([np.zeros((40, 70, 3)), np.ones((70, 40, 3))])
    assert features.shape == (2, 16) and np.linalg.norm(features, axis=1) == pytest.approx([1, 1])
    assert ours.texts(["word " * 200]).shape == (1, 16)


def test_what_is_no_clip_says_what_to_fetch(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder.*hf download"):
        clip.Clip(tmp_path / "gone")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ValueError, match="of no CLIP.*hf download"):
        clip.Clip(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="hf download"):
        clip.Clip(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert not clip.is_clip(tmp_path) and clip.is_clip(folder)
