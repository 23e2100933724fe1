"""Picture sizes that Sana was trained with, by aspect ratio."""

from __future__ import annotations

# (height, width) in units of 32 px for the 512 px models; the larger ones are multiples of it.
_SHAPES = (
    (8, 32), (8, 29), (9, 28), (9, 27), (9, 26), (10, 25), (10, 24), (11, 23), (11, 22), (11, 21), (12, 21), (12, 20),
    (13, 19), (13, 18), (14, 18), (14, 17), (15, 17), (15, 16), (16, 16), (16, 15), (17, 15), (17, 14), (18, 14),
    (18, 13), (19, 13), (20, 12), (21, 12), (22, 11), (23, 11), (24, 10), (25, 10), (27, 9), (32, 8),
)
# Only the 2K and 4K models saw these.
_LARGE_SHAPES = ((8, 31), (8, 30), (26, 9), (28, 9), (29, 8), (30, 8), (31, 8))

BASES = {"512": 1, "1024": 2, "2K": 4, "4K": 8}
ASPECT_RATIOS = ("1:1", "5:4", "4:3", "3:2", "16:9", "2:1", "21:9", "3:1", "4:1",
                 "4:5", "3:4", "2:3", "9:16", "1:2", "9:21", "1:3", "1:4")  # width:height


def sizes(base: str) -> list[tuple[int, int]]:
    """All (width, height) in px of "512", "1024", "2K" or "4K". Source: the aspect bins of diffusers' pipelines."""
    if base not in BASES:
        raise ValueError(f"base is {base!r}: choose one of {', '.join(BASES)}.")
    scale = 32 * BASES[base]
    shapes = _SHAPES + (_LARGE_SHAPES if BASES[base] >= 4 else ())
    return [(width * scale, height * scale) for height, width in shapes]


def resolution(base: str, aspect_ratio: str) -> tuple[int, int]:
    """(width, height) in px of `base` whose shape is nearest to "width:height", for example "16:9"."""
    try:
        width, height = (float(part) for part in aspect_ratio.split(":"))
        wanted = height / width
        if not 0 < wanted < float("inf"):
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"aspect_ratio is {aspect_ratio!r}: two positive numbers are needed, as in 16:9.") from None
    return min(sizes(base), key=lambda size: abs(size[1] / size[0] - wanted))
