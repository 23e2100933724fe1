"""Trajectories of points, as Tora reads them: resampled to the video's frames, then a field of motion around each point.

Source: github.com/alibaba/Tora, its way from points to a field; the steps and roundings are those of its training.
"""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F

CANVAS = 256        # what points are rounded to, a side
REACH, SIGMA = 49, 10.0  # px: how far around a point, and how wide, its motion is spread
SMALLEST = REACH + 1


def parse(text: str) -> list[list[tuple[float, float]]]:
    """Points from JSON: one trajectory or a list of them, a point {"x": 1, "y": 2} or [1, 2]. Raises ValueError."""
    def point(value):
        if isinstance(value, dict) and value.keys() >= {"x", "y"}:
            value = [value["x"], value["y"]]
        if isinstance(value, list) and len(value) == 2 and all(type(number) in (int, float) for number in value):
            return float(value[0]), float(value[1])
        return None

    try:
        found = json.loads(text.replace("'", '"'))
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list) and found and point(found[0]):
        found = [found]
    lists = [[point(value) for value in one] for one in found] if isinstance(found, list) and all(
        isinstance(one, list) for one in found) else []
    if not lists or any(not one or None in one for one in lists):
        raise ValueError(f"trajectories cannot be read ({text[:60]!r}): expected JSON, a list of points as [[10, 20], [30, 40]] or "
                         '[{"x": 10, "y": 20}, ...], or a list of such lists.')
    return lists


def resampled(points: list[tuple[int, int]], frames: int) -> list[tuple[int, int]]:
    """So many points: too many are thinned out, too few get others between them, evenly spread over the gaps from the first
    on. A single point stands in the middle of the canvas, as in the source."""
    if len(points) > frames:
        points = points[:: len(points) // frames][:frames]
    if len(points) < 2:
        return [(CANVAS // 2, CANVAS // 2)] * frames
    if len(points) >= frames:
        return points[: frames - 1] + points[-1:]
    gaps = len(points) - 1
    each, more = divmod(frames - len(points), gaps)
    out = []
    for i, ((x0, y0), (x1, y1)) in enumerate(zip(points, points[1:])):
        count = each + (i < more) + 1
        out += [(int(x0 + j / count * (x1 - x0)), int(y0 + j / count * (y1 - y0))) for j in range(count)]
    return out + points[-1:]


def field(trajectories, frames: int, width: int, height: int) -> torch.Tensor:
    """Motion (frames, 2, height, width) in pixels a frame, x before y: at each frame from the second on, where a point was, how
    far it went; spread around it by a Gaussian that is 1 there.

    trajectories: lists of points (x, y) in pixels of a picture of width x height. Raises ValueError for less than SMALLEST px.
    """
    if min(width, height) < SMALLEST:
        raise ValueError(f"the video is {width} x {height} px: trajectories need at least {SMALLEST} px a side.")
    motion = torch.zeros(frames, 2, height, width)
    for points in trajectories:
        rounded = [(int(x * (CANVAS / width)), int(y * (CANVAS / height))) for x, y in points]
        places = [(int(width * x / CANVAS), int(height * y / CANVAS)) for x, y in resampled(rounded, frames)]
        for frame, ((x0, y0), (x1, y1)) in enumerate(zip(places, places[1:]), 1):
            if 0 <= x0 < width and 0 <= y0 < height:
                motion[frame, :, y0, x0] = torch.tensor([x1 - x0, y1 - y0], dtype=torch.float32)
    bell = torch.exp(-torch.arange(-REACH, REACH + 1.0) ** 2 / (2 * SIGMA**2))
    spread = F.pad(motion.flatten(0, 1)[:, None], (REACH,) * 4, mode="reflect")
    spread = F.conv2d(F.conv2d(spread, bell[None, None, :, None]), bell[None, None, None, :])
    return spread[:, 0].unflatten(0, (frames, 2))
