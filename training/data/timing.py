"""Which frames of a clip are taken: time stamps to a steady rate, counts that a model takes, windows. Numbers only."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

WINDOWS = ("head", "uniform", "slide")
# Containers round time stamps, Matroska to 1 ms. A frame that comes this much after an instant counts as being there.
ROUNDING = 0.001


def available(frames: int, duration: float | None, fps: float | None) -> int:
    """How many frames a clip has at a steady `fps`: the instants 0, 1/fps, 2/fps ... before its end.

    fps None, or a clip without times (a folder of pictures): the frames as they are.
    """
    if fps is None or duration is None:
        return frames
    return max(1, math.ceil((duration - ROUNDING) * fps)) if frames else 0


def at_rate(times: Sequence[float], duration: float, fps: float) -> list[int]:
    """Which frame is shown at each instant 0, 1/fps, 2/fps ... before `duration`: see shown_at."""
    return [shown_at(times, k / fps) for k in range(available(len(times), duration, fps))]


def shown_at(times: Sequence[float], time: float) -> int:
    """The last frame that began at or before a time. times: seconds at which the frames begin, rising, the first 0."""
    return max(0, bisect.bisect_right(times, time + ROUNDING) - 1)


def frames_that_fit(found: int, allowed: Sequence[int]) -> int | None:
    """The largest of the allowed frame counts that a clip of `found` frames has, None when it is too short for all."""
    return max((count for count in allowed if count <= found), default=None)


def samples(found: int, frames: int, window: str = "head", pad_last: bool = False) -> list[list[int]]:
    """Which of a clip's `found` frames make up each sample of `frames` frames; [] when it is too short.

    head: the first ones. uniform: one sample, spread evenly from the first frame to the last, so that a long clip runs faster.
    slide: as many samples side by side as there are whole ones. pad_last: a clip that is too short is one sample, its last
    frame repeated.
    """
    if window not in WINDOWS:
        raise ValueError(f"window is {window!r}: choose one of {', '.join(WINDOWS)}.")
    if found < frames:
        return [[min(k, found - 1) for k in range(frames)]] if pad_last and found else []
    if window == "uniform" and frames > 1:
        return [[(k * (found - 1) + (frames - 1) // 2) // (frames - 1) for k in range(frames)]]
    count = found // frames if window == "slide" else 1
    return [list(range(start, start + frames)) for start in range(0, count * frames, frames)]
