"""Area prompts on Sana: the host's nodes give an area in units of 8 px, its sampling takes it in latent pixels."""

from __future__ import annotations

UNIT = 8     # px
PIXELS = 32  # px a side of one of Sana's latent pixels


def around_sampling(executor, noise, *args, **kwargs):
    """The host's OUTER_SAMPLE wrapper. Areas in shares of the picture are left to the host."""
    for conds in executor.class_obj.conds.values():
        for cond in conds:  # copies of this run
            if "area" in cond and cond["area"][0] != "percentage":
                cond["area"] = in_latent_pixels(cond["area"], noise.shape[-2:])
    return executor(noise, *args, **kwargs)


def in_latent_pixels(area, size) -> tuple[int, int, int, int]:
    """(height, width, y, x) of an area in UNITs -> in pixels of a latent of `size` (H, W), at least one, to the nearest
    edge. Raises ValueError for an area outside the picture."""
    (height, top), (width, left) = (_span(area[i + 2], area[i], size[i]) for i in (0, 1))
    if height < 1 or width < 1:
        y, x = (UNIT * value for value in area[2:])
        raise ValueError(f"This area prompt lies outside the picture: it begins at x {x}, y {y}, and the picture has "
                         f"{PIXELS * size[1]} x {PIXELS * size[0]} px.")
    return height, width, top, left


def _span(start, length, limit):
    first = round(start * UNIT / PIXELS)
    last = max(first + 1, round((start + length) * UNIT / PIXELS))
    return min(last, limit) - first, first
