"""What can be said of a clip from its pixels alone, without a network."""
from __future__ import annotations

import numpy as np


def motion(frames: np.ndarray) -> dict[str, float]:
    """Measures of frames (T, H, W, 3) in [0, 1], three or more. The first three are in steps of 8 bits, of 255:

    motion: mean absolute change from frame to frame. flicker: mean absolute second difference, which a steady change leaves
    at 0. trembling: change of the pixel in the middle, when pixels are ordered by how much they change: what trembles
    where, in a clip that moves in less than half of the picture, is still. consistency: mean correlation of a frame with
    the next, at most 1, and 1 where both are flat and alike.

    Raises ValueError for another shape.
    """
    frames = np.asarray(frames, dtype=np.float64)
    if frames.ndim != 4 or len(frames) < 3:
        raise ValueError(f"motion: expected frames (T, H, W, 3), three or more, found {frames.shape}")
    change = np.abs(np.diff(frames, axis=0))
    return {"motion": 255 * float(change.mean()), "flicker": 255 * float(np.abs(np.diff(frames, 2, axis=0)).mean()),
            "trembling": 255 * float(np.median(change.mean(axis=(0, 3)))),
            "consistency": float(np.mean([_correlation(a, b) for a, b in zip(frames, frames[1:])]))}


def _correlation(a, b):
    a_off, b_off = a - a.mean(), b - b.mean()
    spread = np.sqrt((a_off ** 2).sum() * (b_off ** 2).sum())
    if spread < 1e-12:
        return float(np.allclose(a, b))
    return float((a_off * b_off).sum() / spread)
