"""The drawn clips: their split, their motion, their words, and the judge of them."""
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sanacog.evaluation.drawn import clip_judge, clips, shapes


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_sampled_scenes_keep_to_their_side():
    held = set(shapes.combinations(True, shapes.MAIN_SHAPES))
    train = clips.sample_scenes(1000, seeded(1))
    assert not {tuple(r[:3]) for r in train.tolist()} & held
    assert {tuple(r[:3]) for r in clips.sample_scenes(300, seeded(1), held_out=True).tolist()} <= held
    assert set(train[:, clips.DIRECTION].tolist()) == set(range(4))


def test_evaluation_prompts():
    scenes, prompts = clips.evaluation_scenes()
    assert scenes.shape == (48, 4) and len(set(prompts)) == 48
    assert {tuple(r[:3]) for r in scenes.tolist()} <= set(shapes.combinations(True, shapes.MAIN_SHAPES))
    for column in (clips.SHAPE, clips.DIRECTION):
        assert scenes[:, column].bincount().tolist() == [12] * 4
    assert prompts[0] == clips.plain_prompt(scenes[0]) and " moving " in prompts[0]
    again, same = clips.evaluation_scenes()
    assert torch.equal(scenes, again) and prompts == same


@pytest.mark.parametrize("layout", [clips.NARROW, clips.WIDE])
def test_shapes_stay_inside_and_move_as_told(layout):
    scenes = torch.cat([clips.sample_scenes(16, seeded(2)), torch.tensor([[0, s, 2, d] for s in range(4) for d in range(4)])])
    shown = clips.draw(scenes, seeded(3), layout)
    assert shown.shape == (32, 3, 9, 96, 96) and shown.min() >= -1 and shown.max() <= 1
    assert torch.equal(shown, clips.draw(scenes, seeded(3), layout))
    paper = (clips.RGB[scenes[:, clips.BACKGROUND]] * 2 - 1)[:, :, None, None]
    for edge in (shown[..., 0, :], shown[..., -1, :], shown[..., 0], shown[..., -1]):
        assert torch.allclose(edge, paper.expand_as(edge))
    for verdict, scene in zip((clip_judge.judge_clip(c) for c in clips.to_frames(shown)), scenes.tolist()):
        assert verdict.direction == clips.DIRECTIONS[scene[clips.DIRECTION]]
        assert 0.3 < np.abs(verdict.travel).max() < 0.42 and np.abs(verdict.travel).min() < 0.01


def test_both_formats_show_the_same():
    """The large one in more pixels and more frames."""
    scenes = clips.sample_scenes(8, seeded(2))
    small, large = (clips.draw(scenes, seeded(3), clips.WIDE, form=form) for form in (clips.SMALL, clips.LARGE))
    assert large.shape == (8, 3, 17, 128, 128)
    shrunk = F.interpolate(large[:, :, ::2].transpose(1, 2).flatten(0, 1), (96, 96), mode="area").unflatten(0, (8, 9))
    assert (shrunk.transpose(1, 2) - small).abs().mean() < 0.01
    assert all(right.all() for right in clip_judge.agreement(clips.to_frames(large), scenes).values())


def test_chosen_frames_are_frames_of_the_clip():
    scenes = clips.sample_scenes(3, seeded(4))
    two = clips.draw(scenes, seeded(5), frames=2)
    assert two.shape == (3, 3, 2, 96, 96)
    whole = clips.draw(scenes, seeded(5))
    for i in range(3):
        at = [[torch.equal(two[i, :, k], whole[i, :, t]) for t in range(9)].index(True) for k in range(2)]
        assert at[0] < at[1]


def test_words_name_what_they_say():
    rng = random.Random(0)
    for scene in clips.sample_scenes(200, seeded(5)).tolist():
        text = clips.any_prompt(scene, rng).lower()
        assert f"{clips.COLOURS[scene[clips.BACKGROUND]]} background" in text
        assert any(f"{clips.COLOURS[scene[clips.COLOUR]]} {word}" in text for word in clips.SHAPE_WORDS[scene[clips.SHAPE]])
        named = [d for d, (word, *_) in enumerate(clips.DIRECTION_WORDS) if word in text]
        assert named == [scene[clips.DIRECTION]]


@pytest.mark.parametrize("blur,noise", [(1, 0.0), (5, 0.1)])
def test_judge_is_right_about_drawn_clips(blur, noise):
    scenes = clips.sample_scenes(48, seeded(6), held_out=True)
    shown = clips.draw(scenes, seeded(7), clips.WIDE).transpose(1, 2).flatten(0, 1)
    shown = F.avg_pool2d(F.pad(shown, [blur // 2] * 4, mode="replicate"), blur, 1)
    shown = (shown + noise * torch.randn(shown.shape, generator=seeded(8))).unflatten(0, (48, 9)).transpose(1, 2)
    for name, right in clip_judge.agreement(clips.to_frames(shown), scenes).items():
        assert right.mean() >= (1.0 if noise == 0 else 0.98), name


def test_judge_sees_no_motion_where_there_is_none():
    still = clips.to_frames(clips.draw(torch.tensor([[0, 0, 2, 1]])))[0, 4:5].repeat(9, axis=0)
    verdict = clip_judge.judge_clip(still)
    assert (verdict.background, verdict.colour, verdict.shape, verdict.direction) == ("blue", "red", "circle", None)
    flat = np.full((9, 96, 96, 3), (0.97, 0.86, 0.10))
    assert clip_judge.judge_clip(flat) == clip_judge.ClipVerdict("yellow", None, None, None)


def test_judge_needs_frames_that_agree():
    red, green = (clips.to_frames(clips.draw(torch.tensor([[c, 0, 2, 1]])))[0] for c in (0, 1))
    verdict = clip_judge.judge_clip(np.concatenate([red[:5], green[5:]]))
    assert (verdict.colour, verdict.background, verdict.direction) == (None, "blue", "right")


def test_judge_refuses_what_is_no_clip():
    with pytest.raises(ValueError, match=r"\(96, 96, 3\)"):
        clip_judge.judge_clip(np.zeros((96, 96, 3)))
