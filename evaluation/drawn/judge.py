"""What a picture shows, told from its pixels by plain code: background, colour, shape, size and place.

The shape is cut out by its distance from the background's colour, laid over one canonical mask per class at the same
centre and spread (second moments), and named after the mask with the largest overlap (intersection over union).
"""
from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from . import shapes

GRID = 64  # pictures are averaged down to this before anything is measured, which also removes noise
MIN_CONTRAST = 0.15  # RGB distance below which a pixel cannot belong to a shape
MIN_AREA, MAX_AREA = 0.008, 0.7  # share of the picture
MIN_OVERLAP = 0.72  # below it, the blob is none of the shapes
OUTLINE = 2  # cells: how far around the body its outline is looked for, beyond the cell next to it, where colours mix
MIN_OUTLINE = 0.4  # share of those cells in its colour: at least 0.48 after the autoencoder, below 0.01 without an outline


@dataclass(frozen=True)
class Verdict:
    """Names from the tables of `shapes`, None where nothing could be told; overlap is the best mask's, in [0, 1];
    centre (x, y) of the blob's mass, in shares of the picture's sides, also where the blob is none of the shapes."""

    background: str
    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    place: str | None = None
    overlap: float = 0.0
    centre: tuple[float, float] | None = None


def judge(picture: np.ndarray) -> Verdict:
    """Judge a (H, W, 3) float picture in [0, 1], of any size of at least 64 pixels a side.

    Raises ValueError for another shape, or for values that are not finite."""
    small = averaged(picture)
    paper, strength, mask = _cut_out(small)
    background = colour_name(paper)
    if mask is None:
        return Verdict(background)
    core = strength > 0.85
    colour = colour_name(np.median(small[core], axis=0)) if core.any() else None

    best = fit(mask)
    x, y = moments(mask)[:2]
    if best.shape is None:
        return Verdict(background, colour, overlap=best.overlap, centre=(x / GRID, y / GRID))
    large, little = (r * GRID / shapes.PICTURE for r in shapes.RADII)
    centres = np.array(shapes.CENTRES) * GRID / shapes.PICTURE + GRID / 2
    place = int(np.argmin(((centres - (best.x, best.y)) ** 2).sum(axis=1)))
    size = shapes.SIZES[0 if best.radius > (large * little) ** 0.5 else 1]
    return Verdict(background, colour, best.shape, size, shapes.PLACES[place], best.overlap, (x / GRID, y / GRID))


class Fit(NamedTuple):
    """The canonical mask that lies best over a soft mask. shape: None where even that lies badly; x, y, radius of its
    circle, in grid cells."""

    shape: str | None
    overlap: float
    x: float
    y: float
    radius: float


def fit(mask: np.ndarray) -> Fit:
    """The shape whose mask, at the same centre and spread, has the largest overlap with a soft mask (64, 64)."""
    x, y, spread = moments(mask)
    best = Fit(None, 0.0, x, y, 0.0)
    for index, name in enumerate(shapes.SHAPES):
        shift_x, shift_y, unit = _canonical_moments(index)
        r = spread / unit
        left, top = x - shift_x * r, y - shift_y * r
        score = overlap(mask, _mask(index, left, top, r))
        if score > best.overlap:
            best = Fit(name, score, left, top, r)
    return best if best.overlap >= MIN_OVERLAP else best._replace(shape=None)


def shape_mask(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) in [0, 1] -> what stands out from the background, (64, 64) in [0, 1]; zeros where nothing does."""
    mask = _cut_out(averaged(picture))[2]
    return np.zeros((GRID, GRID)) if mask is None else mask


def outlined(picture: np.ndarray, colour: int, line: int) -> bool:
    """Whether a (H, W, 3) picture in [0, 1] shows a body of one colour with an outline of another around it; both are
    indices into shapes.COLOURS."""
    small = averaged(picture)
    nearest = ((small[:, :, None] - shapes.RGB.numpy()) ** 2).sum(axis=3).argmin(axis=2)
    body = nearest == colour
    around = grown(body, 1 + OUTLINE) & ~grown(body, 1)
    return bool(body.mean() >= MIN_AREA and around.any() and (nearest[around] == line).mean() >= MIN_OUTLINE)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two soft masks; 0 where both are empty."""
    return float(np.minimum(one, other).sum() / max(np.maximum(one, other).sum(), 1e-9))


def agreement(pictures, scenes) -> dict[str, list[bool]]:
    """For pictures (each (H, W, 3) in [0, 1]) and scenes (N, 5): per attribute, whether each picture shows it."""
    return agreed([judge(picture) for picture in pictures], scenes)


def agreed(verdicts: list[Verdict], scenes) -> dict[str, list[bool]]:
    """The same of pictures that were judged."""
    tables = (shapes.COLOURS, shapes.SHAPES, shapes.COLOURS, shapes.SIZES, shapes.PLACES)
    return {name: [getattr(v, name) == tables[i][int(s[i])] for v, s in zip(verdicts, scenes)]
            for i, name in enumerate(shapes.ATTRIBUTES)}


def averaged(picture) -> np.ndarray:
    """The picture averaged down to (64, 64, 3)."""
    picture = np.asarray(picture, dtype=np.float64)
    if picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape[:2]) < GRID:
        raise ValueError(f"judge: expected a picture (H, W, 3) of at least {GRID} pixels a side, found {picture.shape}")
    if not np.isfinite(picture).all():
        raise ValueError("judge: the picture holds values that are not finite")
    return _shrink(np.clip(picture, 0.0, 1.0))


def _cut_out(small: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The background's colour; how far each cell is from it, 1 like the shape; the shape's soft mask. None for both
    where there is no shape."""
    paper = edge_colour(small)
    distance = np.linalg.norm(small - paper, axis=2)
    far = distance[distance > max(MIN_CONTRAST, 0.6 * np.quantile(distance, 0.995))]
    if far.size < MIN_AREA * GRID * GRID * 0.5:
        return paper, None, None
    strength = np.clip(distance / np.median(far), 0.0, 1.0)
    mask = np.clip((strength - 0.5) * 4 + 0.5, 0.0, 1.0)  # a soft threshold keeps the outline between grid cells
    mask[strength < 0.38] = 0.0
    return (paper, strength, mask) if MIN_AREA <= mask.mean() <= MAX_AREA else (paper, None, None)


def edge_colour(small: np.ndarray) -> np.ndarray:
    """The (3,) median colour along the edge of an averaged picture."""
    sides = small[:2], small[-2:], small[:, :2], small[:, -2:]
    return np.median(np.concatenate([side.reshape(-1, 3) for side in sides]), axis=0)


def _shrink(picture: np.ndarray) -> np.ndarray:
    """Area average to (64, 64, 3); sides that 64 does not divide are first cut to the nearest multiple."""
    if picture.shape[0] % GRID or picture.shape[1] % GRID:
        tensor = torch.from_numpy(picture).permute(2, 0, 1)[None]
        return torch.nn.functional.adaptive_avg_pool2d(tensor, GRID)[0].permute(1, 2, 0).numpy()
    return picture.reshape(GRID, picture.shape[0] // GRID, GRID, picture.shape[1] // GRID, 3).mean(axis=(1, 3))


def grown(cells: np.ndarray, steps: int) -> np.ndarray:
    """The cells and all that are at most so many steps, diagonal ones too, from one."""
    padded = torch.from_numpy(cells)[None, None].float()
    return torch.nn.functional.max_pool2d(padded, 2 * steps + 1, 1, steps)[0, 0].bool().numpy()


def colour_name(rgb: np.ndarray) -> str:
    """The nearest of shapes.COLOURS."""
    return shapes.COLOURS[int(((shapes.RGB.numpy() - rgb) ** 2).sum(axis=1).argmin())]


def moments(mask: np.ndarray) -> tuple[float, float, float]:
    """Centre (x, y) and root mean square distance from it, in grid cells."""
    line = np.arange(GRID) + 0.5
    total = mask.sum()
    x, y = (mask.sum(axis=0) * line).sum() / total, (mask.sum(axis=1) * line).sum() / total
    spread = (mask.sum(axis=0) * (line - x) ** 2).sum() + (mask.sum(axis=1) * (line - y) ** 2).sum()
    return x, y, (spread / total) ** 0.5


@functools.lru_cache(maxsize=None)
def _canonical_moments(shape: int) -> tuple[float, float, float]:
    """Of a shape of radius 1 at the origin: centre of mass and spread."""
    x, y, spread = moments(_mask(shape, GRID / 2, GRID / 2, 20.0))
    return (x - GRID / 2) / 20.0, (y - GRID / 2) / 20.0, spread / 20.0


def _mask(shape: int, x: float, y: float, radius: float) -> np.ndarray:
    line = torch.arange(GRID, dtype=torch.float64) + 0.5
    across, down = torch.broadcast_tensors(line[None, :] - x, line[:, None] - y)
    return (0.5 - shapes.signed_distance(shape, across, down, torch.tensor(radius, dtype=torch.float64))).clamp(0, 1).numpy()
