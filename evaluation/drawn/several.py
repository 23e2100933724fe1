"""Which shapes a picture shows where there may be more than one: cut out colour by colour, each named by `judge`'s masks."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from . import judge, shapes

LEAST = 0.005  # share of the picture that a body covers at least
CORE = 0.25    # and of its cells that have only their own colour around them: the seam where two colours mix has few


class Thing(NamedTuple):
    """A body of one colour. shape: None where it is none of the shapes; centre (x, y) in shares of the picture's sides."""

    colour: str
    shape: str | None
    centre: tuple[float, float]


def things(picture: np.ndarray) -> tuple[str, list[Thing]]:
    """(background, what stands on it) of a (H, W, 3) picture in [0, 1] of at least 64 pixels a side.

    Bodies of one colour that touch are one. Raises ValueError as `judge.judge`."""
    small = judge.averaged(picture)
    paper = judge.edge_colour(small)
    background = judge.colour_name(paper)
    everything = range(len(shapes.COLOURS))
    nearest = _nearest(small, everything)
    # Outlines mix two colours and look like a third: only colours that fill a place of their own count.
    there = [i for i in everything if shapes.COLOURS[i] == background or _core(nearest == i).mean() >= CORE * LEAST]
    nearest = _nearest(small, there)
    found = []
    for i in there:
        bodies, count = ndimage.label(nearest == i, np.ones((3, 3)))
        for cells in (bodies == n + 1 for n in range(count) if shapes.COLOURS[i] != background):
            core = _core(cells)
            if cells.mean() < LEAST or core.sum() < CORE * cells.sum():
                continue
            ink = np.median(small[core], axis=0)
            share = ((small - paper) @ (ink - paper) / ((ink - paper) ** 2).sum()).clip(0, 1)
            mask = np.where(judge.grown(cells, 1) & (cells | (nearest == shapes.COLOURS.index(background))), share, 0.0)
            x, y = judge.moments(mask)[:2]
            found.append(Thing(shapes.COLOURS[i], judge.fit(mask).shape, (x / judge.GRID, y / judge.GRID)))
    return background, found


def _nearest(small, choices):
    """The index of the nearest of these colours, cell by cell."""
    choices = np.array(list(choices))
    return choices[((small[:, :, None] - shapes.RGB.numpy()[choices]) ** 2).sum(axis=3).argmin(axis=2)]


def _core(cells):
    """The cells whose neighbours, diagonal ones too, are all among them; the picture's edge is no end."""
    return ndimage.binary_erosion(cells, np.ones((3, 3)), border_value=1)
