"""The drawn world of the tiny SANA-Video: the moving shapes of `clips`, for as long as one likes.

A shape that leaves the picture on one side comes in on the other. The first 17 frames show it wholly inside, on its way through
the middle. Scenes, words and the split into training and held-out combinations are those of `clips`.
"""
from __future__ import annotations

import numpy as np
import torch

from . import clips, shapes
from .clips import BACKGROUND, COLOUR, DIRECTION, PICTURE, SHAPE, STEP
from .judge import judge
from .shapes import COLOURS, RGB

FRAMES, RATE = 17, 16  # frames of a plain clip, frames a second
SPEED = (2.7, 3.1)     # pixels a frame
RADIUS, ASIDE = (20.0, 22.0), 8.0  # of the circle around a shape; how far from the middle it may pass
MOST = 2 / 3           # share of the frames that must agree


def draw(scenes: torch.Tensor, frames: int = FRAMES, generator: torch.Generator | None = None) -> torch.Tensor:
    """Clips (B, 3, frames, 96, 96) in [-1, 1] of scenes (B, 4). The generator picks radius, speed and how far aside; without one
    each is the middle of its range."""
    count = len(scenes)

    def uniform(low, high):
        return low + (high - low) * (torch.full((count,), 0.5) if generator is None else torch.rand(count, generator=generator))

    radius, speed, aside = uniform(*RADIUS), uniform(*SPEED), uniform(-ASIDE, ASIDE)
    along = STEP[scenes[:, DIRECTION]]
    time = torch.arange(frames) - (FRAMES - 1) / 2  # 0 in the middle of a plain clip
    centre = PICTURE / 2 + (along * speed[:, None])[:, None] * time[:, None] + (along.flip(1).abs() * aside[:, None])[:, None]
    line = torch.arange(PICTURE) + 0.5
    coverage = torch.empty(count, 1, frames, PICTURE, PICTURE)
    for shape in scenes[:, SHAPE].unique().tolist():
        rows = (scenes[:, SHAPE] == shape).nonzero()[:, 0]
        x, y = (_nearest(line - centre[rows, :, axis, None]) for axis in (0, 1))
        distance = shapes.signed_distance(shape, *torch.broadcast_tensors(x[:, :, None, :], y[:, :, :, None]), radius[rows, None, None, None])
        coverage[rows, 0] = (0.5 - distance).clamp(0, 1)
    ink, paper = (RGB[scenes[:, i]][:, :, None, None, None] * 2 - 1 for i in (COLOUR, BACKGROUND))
    return torch.lerp(paper, ink, coverage)


def _nearest(offset):
    """The way round the picture that is shorter."""
    return (offset + PICTURE / 2).remainder(PICTURE) - PICTURE / 2


def agreement(frames, scenes) -> dict[str, np.ndarray]:
    """For clips (each (T, H, W, 3) in [0, 1]) and scenes (N, 4): whether each shows its colour and its background, in two thirds of
    its frames, and keeps moving its way, in every stretch of a plain clip's length."""
    found = {"colour": [], "background": [], "direction": []}
    for clip, scene in zip(frames, scenes):
        verdicts = [judge(frame) for frame in clip]
        for name, index in (("colour", COLOUR), ("background", BACKGROUND)):
            wanted = COLOURS[int(scene[index])]
            found[name].append(np.mean([getattr(v, name) == wanted for v in verdicts]) >= MOST)
        found["direction"].append(keeps_moving(np.asarray(clip), scene))
    return {name: np.array(values) for name, values in found.items()}


def keeps_moving(clip: np.ndarray, scene) -> bool:
    """Whether the shape goes its way in every stretch of 17 frames: at least half as far as it should, and more than twice as far
    as it goes aside."""
    ink, paper = (RGB[int(scene[i])].numpy() for i in (COLOUR, BACKGROUND))
    covered = ((clip - paper) @ (ink - paper) / ((ink - paper) ** 2).sum()).clip(0, 1)  # (T, H, W)
    covered = np.where(covered > 0.5, covered, 0.0) + 1e-6
    turn = np.exp(2j * np.pi * (np.arange(PICTURE) + 0.5) / PICTURE)  # round the picture, so that a shape on its edge has a place
    places = [np.unwrap(np.angle((covered.sum(axis) * turn).sum(-1))) * PICTURE / (2 * np.pi) for axis in (1, 2)]  # x, y
    path = np.stack(places, -1)
    way = STEP[int(scene[DIRECTION])].numpy()
    stretch = min(len(path), FRAMES) - 1
    for start in range(0, len(path) - stretch, stretch):
        moved = path[start + stretch] - path[start]
        along, aside = float(moved @ way), float(abs(moved @ way[::-1]))
        if along < 0.5 * SPEED[0] * stretch or aside > 0.5 * along:
            return False
    return True


def to_frames(shown: torch.Tensor):
    return clips.to_frames(shown)
