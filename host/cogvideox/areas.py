"""Area prompts on a video: the host's nodes for pictures give areas and masks of two dimensions, its sampling counts three.

Areas in latent pixels it completes by itself.
"""

from __future__ import annotations

import math

import torch


def fit_area(cond: dict, size, front: int) -> None:
    """Give a condition's area and mask their third dimension, in place: all frames, or one mask for each. size: (T, h, w) of
    the latent, before which `front` more are put."""
    area = cond.get("area")
    if area is not None and area[0] == "percentage" and len(area) == 5:
        _, height, width, top, left = area
        cond["area"] = ("percentage", 1.0, height, width, 0.0, top, left)
    mask = cond.get("mask")
    if mask is None:
        return
    if cond.get("set_area_to_bounds"):
        cond["area"], cond["set_area_to_bounds"] = bounds(mask, size[1:]), False
    if mask.ndim == 3 and len(mask) == 1:
        cond["mask"] = mask.expand(size[0] + front, -1, -1)
    elif mask.ndim == 3 and len(mask) == size[0]:
        cond["mask"] = torch.cat([mask[:1].expand(front, -1, -1), mask])
    elif mask.ndim == 3:
        raise ValueError(f"The mask of an area prompt has {len(mask)} frames, the latent {size[0]}: give one mask, or one for "
                         "each latent frame.")


def bounds(mask, size) -> tuple[int, int, int, int]:
    """(height, width, y, x) in pixels of a latent of `size` (h, w) of what lies under a mask (.., H, W), at least one."""
    painted = mask.reshape(-1, *mask.shape[-2:]).abs().amax(0)
    spans = []
    for axis, side in enumerate(size):
        found = painted.amax(1 - axis).nonzero().flatten().tolist() or [0]
        pixel = side / painted.shape[axis]
        first, last = math.floor(found[0] * pixel), math.ceil((found[-1] + 1) * pixel)
        spans.append((max(1, min(last, side) - first), first))
    (height, top), (width, left) = spans
    return height, width, top, left
