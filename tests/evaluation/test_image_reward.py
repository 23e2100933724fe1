"""ImageReward beside its equations, written out on the tensors of its file."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sanacog.evaluation import image_reward

from . import reward_folder
from .reward_folder import LAYERS, PATCH, SIDE, tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return reward_folder.make(tmp_path_factory.mktemp("reward"))


def reward(t, pixels, ids):
    """Of one picture (3, 64, 64), normalised, and the token ids of its prompt, without padding, in float64."""
    t = {name.removeprefix("blip."): value.double() for name, value in t.items()}

    def linear(name, x):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(name, x, eps):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt() * t[f"{name}.weight"] + t[f"{name}.bias"]

    def attend(q, k, v):
        q, k, v = (x.unflatten(-1, (-1, 64)).transpose(0, 1) for x in (q, k, v))
        return ((q @ k.mT / 8).softmax(-1) @ v).transpose(0, 1).flatten(1)

    x = F.conv2d(pixels.double()[None], t["visual_encoder.patch_embed.proj.weight"], stride=PATCH)[0].flatten(1).T
    x = torch.cat([t["visual_encoder.cls_token"][0], x]) + t["visual_encoder.pos_embed"][0]
    for i in range(LAYERS):
        block = f"visual_encoder.blocks.{i}"
        x = x + linear(f"{block}.attn.proj", attend(*linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x, 1e-6)).chunk(3, -1)))
        x = x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x, 1e-6))))
    seen = norm("visual_encoder.norm", x, 1e-6)
    y = t["text_encoder.embeddings.word_embeddings.weight"][ids] + t["text_encoder.embeddings.position_embeddings.weight"][: len(ids)]
    y = norm("text_encoder.embeddings.LayerNorm", y, 1e-12)
    for i in range(LAYERS):
        layer = f"text_encoder.encoder.layer.{i}"
        for kind, other in (("attention", None), ("crossattention", seen)):
            q, k, v = (linear(f"{layer}.{kind}.self.{part}", y if other is None or part == "query" else other)
                       for part in ("query", "key", "value"))
            y = norm(f"{layer}.{kind}.output.LayerNorm", linear(f"{layer}.{kind}.output.dense", attend(q, k, v)) + y, 1e-12)
        inner = F.gelu(linear(f"{layer}.intermediate.dense", y))
        y = norm(f"{layer}.output.LayerNorm", linear(f"{layer}.output.dense", inner) + y, 1e-12)
    y = y[0]
    for at in (0, 2, 4, 6, 7):
        y = linear(f"mlp.layers.{at}", y)
    return float((y[0] - 0.16717362830052426) / 1.0333394966054072)


def test_rewards_beside_the_equations(folder):
    rng = np.random.default_rng(0)
    pictures = [(rng.integers(0, 256, (SIDE, SIDE, 3)) / 255).astype(np.float32) for _ in range(3)]
    prompts = ["a red sky", "Sky", "red " * 60]
    ids = [[2, 6, 5, 7, 3], [2, 7, 3], [2, *[5] * 33, 3]]
    mean, deviation = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    wanted = [reward(tensors(), ((torch.from_numpy(picture) - mean) / deviation).permute(2, 0, 1), said)
              for picture, said in zip(pictures, ids)]
    found = image_reward.ImageReward(folder).scores(pictures, prompts)
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4) and np.ptp(wanted) > 0.1
    assert image_reward.ImageReward(folder).scores([np.zeros((40, 90, 3))], ["a"]).shape == (1,)


def test_what_is_not_there_says_what_to_fetch(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder.*hf download THUDM/ImageReward"):
        image_reward.ImageReward(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="neither ImageReward.pt nor.*hf download"):
        image_reward.ImageReward(tmp_path)
    made = tensors()
    torch.save(made, tmp_path / "ImageReward.pt")
    with pytest.raises(FileNotFoundError, match="neither vocab.txt nor.*hf download google-bert"):
        image_reward.ImageReward(tmp_path)
    (tmp_path / "vocab.txt").write_text((folder / "vocab.txt").read_text())
    for name, said in (("blip.visual_encoder.blocks.1.norm1.bias", "layers.1.layer_norm1.bias is missing"), ("mlp.layers.6.weight", "layers.6"),
                       ("blip.text_encoder.encoder.layer.0.crossattention.self.key.weight", "crossattention.self.key.weight is missing"),
                       ("blip.text_encoder.embeddings.word_embeddings.weight", "word_embeddings")):
        torch.save({key: value for key, value in made.items() if key != name}, tmp_path / "ImageReward.pt")
        with pytest.raises(ValueError, match=rf"ImageReward.pt: is not ImageReward's \(.*{re.escape(said)}.*hf download"):
            image_reward.ImageReward(tmp_path)
    (tmp_path / "ImageReward.pt").write_bytes(b"no file of tensors")
    with pytest.raises(ValueError, match="is not ImageReward's"):
        image_reward.ImageReward(tmp_path)
