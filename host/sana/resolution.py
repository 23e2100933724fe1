"""Picture sizes that Sana was trained with, by aspect ratio, and the way back to the size that was asked for."""

from __future__ import annotations

import torch.nn.functional as F

from ...sana_core.aspect_ratios import MORE_SHAPES, SHAPES

BASES = {"512": 1, "1024": 2, "2K": 4, "4K": 8}
ASPECT_RATIOS = ("1:1", "5:4", "4:3", "3:2", "16:9", "2:1", "21:9", "3:1", "4:1",
                 "4:5", "3:4", "2:3", "9:16", "1:2", "9:21", "1:3", "1:4")  # width:height


def sizes(base: str) -> list[tuple[int, int]]:
    """All (width, height) in px of "512", "1024", "2K" or "4K". Source: the aspect bins of diffusers' pipelines."""
    if base not in BASES:
        raise ValueError(f"base is {base!r}: choose one of {', '.join(BASES)}.")
    scale = 32 * BASES[base]
    shapes = SHAPES + (MORE_SHAPES if BASES[base] >= 4 else ())
    return [(width * scale, height * scale) for height, width in shapes]


def resolution(base: str, aspect_ratio: str, wanted_width: int = 0, wanted_height: int = 0) -> tuple[int, int]:
    """(width, height) in px of `base` whose shape is nearest to "width:height", for example "16:9", or to the wanted size
    where one is given. Raises ValueError."""
    if wanted_width or wanted_height:
        if min(wanted_width, wanted_height) < 1:
            raise ValueError(f"The wanted size is {wanted_width} x {wanted_height}: give both sides, or 0 for both.")
        aspect_ratio = f"{wanted_width}:{wanted_height}"
    try:
        width, height = (float(part) for part in aspect_ratio.split(":"))
        shape = height / width
        if not 0 < shape < float("inf"):
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"aspect_ratio is {aspect_ratio!r}: two positive numbers are needed, as in 16:9.") from None
    return min(sizes(base), key=lambda size: abs(size[1] / size[0] - shape))


def fitted(pictures, width: int, height: int):
    """IMAGE (B, H, W, C) scaled until it covers width x height px, what is over cut off evenly: (B, height, width, C).

    As diffusers' pipelines go from a size of the tables above back to the one asked for, but for the filter where the
    picture shrinks, which keeps fine lines from flickering. Raises ValueError.
    """
    if pictures.ndim != 4 or 0 in pictures.shape:
        raise ValueError(f"This is no picture: {' x '.join(map(str, pictures.shape))}, expected batch x height x width x "
                         "colours.")
    if min(width, height) < 1:
        raise ValueError(f"The size is {width} x {height}: both sides must be at least 1.")
    old_height, old_width = pictures.shape[1:3]
    if (old_width, old_height) == (width, height):
        return pictures
    scale = max(width / old_width, height / old_height)
    # Rounding must not take the last row of a picture that only just covers.
    covering = max(height, int(old_height * scale)), max(width, int(old_width * scale))
    scaled = F.interpolate(pictures.movedim(-1, 1).float(), covering, mode="bilinear", align_corners=False, antialias=True)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return scaled[:, :, top : top + height, left : left + width].movedim(1, -1).contiguous()
