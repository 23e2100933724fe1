"""The drawn world: its split, its pictures, its words, and the judge of them."""
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sanacog.evaluation.drawn import judge, shapes


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def as_pictures(tensor):
    return (tensor.permute(0, 2, 3, 1) * 0.5 + 0.5).numpy()


def test_split_is_disjoint_and_covers_every_pair():
    seen, held = set(shapes.combinations(False)), set(shapes.combinations(True))
    assert not seen & held and 60 < len(held) < 75
    assert len(seen) + len(held) == 8 * 7 * 6
    assert {(c, s) for c, s, _ in held} <= {(c, s) for c, s, _ in seen}
    assert {(c, b) for c, _, b in held} <= {(c, b) for c, _, b in seen}
    assert {(s, b) for _, s, b in held} <= {(s, b) for _, s, b in seen}


def test_sampled_scenes_keep_to_their_side():
    held = set(shapes.combinations(True))
    assert not {tuple(r[:3]) for r in shapes.sample_scenes(2000, seeded(1)).tolist()} & held
    assert {tuple(r[:3]) for r in shapes.sample_scenes(500, seeded(1), held_out=True).tolist()} <= held


def test_evaluation_prompts():
    scenes, prompts, named = shapes.evaluation_scenes()
    assert len(set(prompts)) == 64 and scenes.shape == (64, 5)
    assert {tuple(r[:3]) for r in scenes.tolist()} <= set(shapes.combinations(True, shapes.MAIN_SHAPES))
    assert all(p.startswith("a large ") for p in prompts)
    assert sum(named) == 32
    assert all(any(w in p for w in (" on the ", " at the ", " in the ")) == n for p, n in zip(prompts, named))
    again, same, _ = shapes.evaluation_scenes()
    assert torch.equal(scenes, again) and prompts == same


def test_drawing_is_deterministic_and_in_range():
    scenes = shapes.sample_scenes(6, seeded(2))
    first, second = shapes.draw(scenes, seeded(3)), shapes.draw(scenes, seeded(3))
    assert torch.equal(first, second)
    assert first.shape == (6, 3, 256, 256) and first.min() >= -1 and first.max() <= 1
    assert not torch.equal(first, shapes.draw(scenes, seeded(4)))


def test_crops_lie_inside_and_show_the_scene():
    scenes = shapes.sample_scenes(32, seeded(2))
    crops = shapes.draw(scenes, seeded(3), crop=128)
    assert crops.shape == (32, 3, 128, 128)
    spread = crops.flatten(2).std(dim=2).amax(dim=1)
    assert (spread > 0.01).float().mean() > 0.8  # nearly all hold a piece of the shape


def test_words_name_what_they_say():
    rng = random.Random(0)
    for scene in shapes.sample_scenes(200, seeded(5)).tolist():
        text, (has_size, has_place) = shapes.any_prompt(scene, rng)
        assert shapes.COLOURS[scene[0]] in text.lower() and f"{shapes.COLOURS[scene[2]]} background" in text.lower()
        assert "{" not in text and "  " not in text
        words = shapes.SMALL if scene[3] else shapes.LARGE
        assert any(f"{w} " in text.lower() for w in words) == has_size
        assert any(w in text for w in shapes.PLACE_WORDS[scene[4]]) == has_place


@pytest.mark.parametrize("blur,noise", [(1, 0.0), (5, 0.1), (11, 0.1)])
def test_judge_is_right_about_drawn_pictures(blur, noise):
    """Every scene of the grammar, once; then the same blurred and noisy."""
    table = [(c, s, b, z, p) for i, (c, s, b) in enumerate(shapes.combinations(False) + shapes.combinations(True))
             for z, p in [(i % 2, i % 5)]]
    scenes = torch.tensor(table)
    pictures = shapes.draw(scenes, seeded(6))
    pictures = F.avg_pool2d(F.pad(pictures, [blur // 2] * 4, mode="replicate"), blur, 1)
    pictures = pictures + noise * torch.randn(pictures.shape, generator=seeded(7))
    for name, right in judge.agreement(as_pictures(pictures), scenes).items():
        assert np.mean(right) == 1.0, name


@pytest.mark.parametrize("side", [(256, 384), (512, 512), (300, 300)])
def test_judge_takes_other_sizes(side):
    picture = shapes.draw(torch.tensor([[0, 3, 2, 0, 4]]))
    verdict = judge.judge(as_pictures(F.interpolate(picture, size=side, mode="bilinear"))[0])
    assert (verdict.colour, verdict.background) == ("red", "blue")
    if side[0] == side[1]:
        assert (verdict.shape, verdict.size, verdict.place) == ("ring", "large", "centre")


def test_judge_sees_no_shape_where_there_is_none():
    flat = np.full((256, 256, 3), (0.97, 0.86, 0.10))
    assert judge.judge(flat) == judge.Verdict("yellow")
    noise = np.random.default_rng(0).random((256, 256, 3))
    assert judge.judge(noise).shape is None
    half = flat.copy()
    half[:, :150] = 0.05
    assert judge.judge(half).shape is None


def test_judge_refuses_what_is_no_picture():
    with pytest.raises(ValueError, match=r"\(3, 256, 256\)"):
        judge.judge(np.zeros((3, 256, 256)))
    with pytest.raises(ValueError, match="not finite"):
        judge.judge(np.full((64, 64, 3), np.nan))
