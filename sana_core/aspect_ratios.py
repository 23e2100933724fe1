"""Picture sizes that Sana was trained with, by aspect ratio."""

from __future__ import annotations

# (height, width) in units of 32 px for the 512 px models; those of 1024, 2K and 4K are multiples of it.
SHAPES = (
    (8, 32), (8, 29), (9, 28), (9, 27), (9, 26), (10, 25), (10, 24), (11, 23), (11, 22), (11, 21), (12, 21), (12, 20),
    (13, 19), (13, 18), (14, 18), (14, 17), (15, 17), (15, 16), (16, 16), (16, 15), (17, 15), (17, 14), (18, 14),
    (18, 13), (19, 13), (20, 12), (21, 12), (22, 11), (23, 11), (24, 10), (25, 10), (27, 9), (32, 8),
)
# Training has these too; the pipelines of the 512 and 1024 px models leave them out.
MORE_SHAPES = ((8, 31), (8, 30), (26, 9), (28, 9), (29, 8), (30, 8), (31, 8))
# Of 2880 px, in units of 64 px.
_SHAPES_2880 = (
    (22, 90), (22, 87), (22, 84), (22, 81), (25, 78), (25, 75), (25, 73), (28, 70), (28, 67), (30, 64), (30, 61), (30, 59),
    (33, 60), (33, 56), (36, 53), (36, 50), (39, 50), (39, 47), (42, 47), (42, 45), (45, 45), (45, 42), (47, 42), (47, 39),
    (50, 39), (50, 36), (53, 36), (56, 33), (60, 33), (61, 30), (64, 30), (67, 28), (70, 28), (73, 25), (75, 25), (78, 25),
    (81, 22), (84, 22), (87, 22), (90, 22),
)
_NAMES = {"2K": 2048, "4K": 4096}


def trained_sizes(resolution: int | str) -> list[tuple[int, int]]:
    """All (height, width) in px of the data sets of 512, 1024, 2048 ("2K"), 2880 or 4096 ("4K") px, from wide to tall.

    Source: the ASPECT_RATIO tables of NVlabs/Sana, diffusion/data/datasets. Raises ValueError.
    """
    side = _NAMES.get(resolution, resolution)
    if str(side) == "2880":
        shapes, unit = _SHAPES_2880, 64
    elif str(side) in ("512", "1024", "2048", "4096"):
        shapes, unit = SHAPES + MORE_SHAPES, int(side) // 16
    else:
        raise ValueError(f"Sana was trained at 512, 1024, 2048, 2880 and 4096 px: there is no table for {resolution!r}. Choose "
                         "one of these, or name the sizes.")
    return sorted(((height * unit, width * unit) for height, width in shapes), key=lambda size: size[0] / size[1])
