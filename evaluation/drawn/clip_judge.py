"""What a clip shows, told from its pixels by plain code: background, colour and shape by `judge`, frame by frame, and
the direction in which the shape's centre goes."""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from . import clips
from .judge import judge

MOST = 2 / 3  # share of the frames that must agree
LEAST_TRAVEL = 0.1  # of the picture's side; less is no motion
STRAIGHT = 0.5  # the motion across the direction must be below this share of the motion along it


@dataclass(frozen=True)
class ClipVerdict:
    """Names from the tables of `clips`, None where the frames do not agree or nothing could be told; travel (x, y) of
    the centre from first frame to last, in shares of the picture's side."""

    background: str | None
    colour: str | None
    shape: str | None
    direction: str | None
    travel: tuple[float, float] = (0.0, 0.0)


def judge_clip(frames: np.ndarray) -> ClipVerdict:
    """Judge frames (T, H, W, 3) in [0, 1], at least two. Raises ValueError for another shape."""
    frames = np.asarray(frames)
    if frames.ndim != 4 or len(frames) < 2:
        raise ValueError(f"judge_clip: expected frames (T, H, W, 3), two or more, found {frames.shape}")
    verdicts = [judge(frame) for frame in frames]
    travel = _travel([v.centre for v in verdicts])
    return ClipVerdict(*(_agreed([getattr(v, name) for v in verdicts]) for name in ("background", "colour", "shape")),
                       _direction(travel), travel)


def agreement(frames, scenes) -> dict[str, np.ndarray]:
    """For clips (each (T, H, W, 3) in [0, 1]) and scenes (N, 4): per attribute, whether each clip shows it."""
    verdicts = [judge_clip(clip) for clip in frames]
    tables = (clips.COLOURS, clips.SHAPES, clips.COLOURS, clips.DIRECTIONS)
    return {name: np.array([getattr(v, name) == tables[i][int(s[i])] for v, s in zip(verdicts, scenes)])
            for i, name in enumerate(clips.ATTRIBUTES)}


def _agreed(names):
    name, count = Counter(names).most_common(1)[0]
    return name if count >= MOST * len(names) else None


def _travel(centres) -> tuple[float, float]:
    """Straight line through the centres, by least squares; frames without one are left out."""
    known = [(i, *centre) for i, centre in enumerate(centres) if centre is not None]
    if len(known) < MOST * len(centres):
        return 0.0, 0.0
    at, x, y = np.array(known).T
    return tuple(float(np.polyfit(at, line, 1)[0] * (len(centres) - 1)) for line in (x, y))


def _direction(travel):
    x, y = travel
    along, across = max(abs(x), abs(y)), min(abs(x), abs(y))
    if along < LEAST_TRAVEL or across > STRAIGHT * along:
        return None
    if abs(x) > abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"
