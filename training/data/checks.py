"""Judging files without a model: of each thing that can be wrong a small function, with its threshold beside it.

What is judged are looks.py's figures of each file. What every code means, and what to do, stands in reasons.py.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .looks import Look
from .reasons import Finding

ENLARGED = 1.0          # times: more is enlarged
CROPPED = 0.2           # share of the area
BAR = 0.02              # share of the height or width, of each of two opposite bars
DARK, LIGHT = 26, 236   # of 255: the 98th and the 2nd percentile of brightness
FLAT = 2.0              # of 255, standard deviation of the colour that varies most
BLURRED = 0.05          # strongest curvature over contrast, see pixels.sharpness: an edge blurred by 2.2 of 512 pixels
STILL, STILL_CELL = 1.0, 5.0  # of 255, mean difference from the first frame, of the whole and of the most changed cell
FLICKER = 4.0           # of 255, usual distance of a frame's brightness from the mean of its neighbours'
SAME_BITS = 4           # of 64, difference hashes of the same picture
SAME_COLOUR, SAME_CELL = 6.0, 32.0  # of 255, mean and largest difference of 8 x 8 thumbnails of the same picture

# --- the file ---


def check_file(look: Look, kind: str) -> list[Finding]:
    if look.problem:
        return [Finding(look.problem, look.frames, look.said)]
    found = [*rotated(look), *alpha(look), *high_bit_depth(look)]
    if kind == "video":
        found += [*header_frames(look), *variable_rate(look), *interlaced(look), *odd_size(look)]
    return found


def header_frames(look: Look) -> Iterable[Finding]:
    if look.header_frames and look.header_frames != look.frames:
        yield Finding("file.header_frames", look.header_frames,
                      f"the header gives {look.header_frames} frames, {look.frames} can be decoded")


def variable_rate(look: Look) -> Iterable[Finding]:
    if look.variable:
        shortest, longest = look.distances
        yield Finding("file.variable_rate", longest / max(shortest, 1e-6),
                      f"its frames are {1000 * shortest:.0f} to {1000 * longest:.0f} ms apart, {look.fps:.2f} a second on average")


def rotated(look: Look) -> Iterable[Finding]:
    if look.rotation or look.mirrored:
        how = [f"turned by {abs(look.rotation)} degrees"] * bool(look.rotation) + ["mirrored"] * look.mirrored
        yield Finding("file.rotated", look.rotation, f"it is shown {' and '.join(how)}: {look.width} x {look.height}")


def interlaced(look: Look) -> Iterable[Finding]:
    if look.interlaced:
        yield Finding("file.interlaced", None, "its frames are marked as interlaced")


def alpha(look: Look) -> Iterable[Finding]:
    if look.alpha:
        yield Finding("file.alpha", None, "it is transparent in places, and is laid over white")


def high_bit_depth(look: Look) -> Iterable[Finding]:
    if look.bits > 8:
        yield Finding("file.high_bit_depth", look.bits, f"{look.bits} bits a channel")


def odd_size(look: Look) -> Iterable[Finding]:
    if look.width % 2 or look.height % 2:
        yield Finding("file.odd_size", None, f"it is {look.width} x {look.height}")


# --- the picture, or the frames of a clip ---


def check_pixels(look: Look, kind: str) -> list[Finding]:
    if look.problem or not look.pixels:
        return []
    plain = list(plain_picture(look))
    found = plain or [*black_bars(look), *blurred(look)]
    if kind == "video" and look.frames > 1:
        found += [*cuts(look), *flashes(look), *flicker(look), *(() if plain else frozen(look))]
    return found


def plain_picture(look: Look) -> Iterable[Finding]:
    low, high, spread = (look.pixels[name] for name in ("low", "high", "spread"))
    if high < DARK:
        yield Finding("picture.black", high, f"98 % of it are darker than {high:.0f} of 255")
    elif low > LIGHT:
        yield Finding("picture.white", low, f"98 % of it are lighter than {low:.0f} of 255")
    elif spread < FLAT:
        yield Finding("picture.flat", spread, f"its colours differ by {spread:.1f} of 255")


def bars_of(look: Look) -> tuple[int, int, int, int] | None:
    """Pixels of black bars at (top, bottom, left, right), or None: they come in pairs that are about equally wide."""
    top, bottom, left, right = look.pixels["bars"]
    width, height = look.pixels["size"]  # of the file's pixels, which need not be square
    sides = [pair if min(pair) >= max(BAR * length, 2) and 2 * min(pair) >= max(pair) else (0, 0)
             for pair, length in (((top, bottom), height), ((left, right), width))]
    return (*sides[0], *sides[1]) if any(map(any, sides)) else None


def black_bars(look: Look) -> Iterable[Finding]:
    if sides := bars_of(look):
        named = [f"{size} px at the {side}" for size, side in zip(sides, ("top", "bottom", "left", "right")) if size]
        yield Finding("picture.black_bars", max(sides), f"black: {', '.join(named)}")


def blurred(look: Look) -> Iterable[Finding]:
    if (value := look.pixels["sharpness"]) < BLURRED:
        yield Finding("picture.blurred", value, f"the curvature of its sharpest edges is {value:.3f} of the contrast, of at least "
                      f"{BLURRED}")


def check_place(enlarged: float, cropped: float, bucket) -> list[Finding]:
    """enlarged: times; cropped: share of the area. bucket: (frames, height, width)."""
    found, size = [], f"{bucket[2]} x {bucket[1]}"
    if enlarged > ENLARGED:
        found.append(Finding("picture.enlarged", enlarged, f"enlarged {enlarged:.2f} times to its bucket of {size}"))
    if cropped > CROPPED:
        found.append(Finding("picture.cropped", cropped, f"{cropped:.0%} of it are cropped for its bucket of {size}"))
    return found


# --- the clip ---


def cuts(look: Look) -> Iterable[Finding]:
    if at := look.pixels["cuts"]:
        yield Finding("clip.cuts", len(at), f"{_times(len(at), 'hard cut')}, at {_moments(look, at)}")


def flashes(look: Look) -> Iterable[Finding]:
    if at := look.pixels["flashes"]:
        yield Finding("clip.flash", len(at), f"{_times(len(at), 'frame')} unlike those around, at {_moments(look, at)}")


def flicker(look: Look) -> Iterable[Finding]:
    if (value := look.pixels["flicker"]) > FLICKER:
        yield Finding("clip.flicker", value, f"its brightness jumps by {value:.0f} of 255 from frame to frame")


def frozen(look: Look) -> Iterable[Finding]:
    mean, most = look.pixels["moved_mean"], look.pixels["moved_most"]
    if mean < STILL and most < STILL_CELL:
        yield Finding("clip.frozen", most, f"no part of it ever differs from the first frame by more than {most:.1f} of 255")


def _times(number, what):
    return f"{number} {what}{'s' * (number > 1)}"


def _moments(look, frames):
    shown = [f"frame {n}" + (f" ({n / look.fps:.2f} s)" if look.fps else "") for n in frames[:5]]
    return ", ".join(shown) + (" ..." if len(frames) > 5 else "")


# --- the set ---


def check_duplicates(files: list[str], looks: list[Look]) -> dict[int, list[Finding]]:
    """{number of a row: findings} for rows that are the same as one before them, or look the same.

    Compares each with each: seconds for 20,000 pictures, a minute or two for 100,000.
    """
    found: dict[int, list[Finding]] = {}
    first: dict[str, int] = {}
    candidates: dict[int, list[int]] = {}  # by the number of hashes: pictures with pictures, clips with clips
    for number, look in enumerate(looks):
        if look.sha256 and (before := first.setdefault(look.sha256, number)) != number:
            found[number] = [Finding("set.duplicate", before, f"the same file as {files[before]}")]
        elif not look.problem and look.pixels and look.pixels["spread"] >= FLAT:
            candidates.setdefault(len(look.pixels["hashes"]), []).append(number)
    for numbers in candidates.values():
        for number, before in near_duplicates([looks[number] for number in numbers]).items():
            found[numbers[number]] = [Finding("set.near_duplicate", numbers[before],
                                              f"looks the same as {files[numbers[before]]}")]
    return found


def near_duplicates(looks: list[Look]) -> dict[int, int]:
    """{number of a look: that of the first one that looks the same}. All have the same number of hashes."""
    if len(looks) < 2:
        return {}
    hashes = np.array([[int(text, 16) for text in look.pixels["hashes"]] for look in looks], np.uint64)
    thumbnails = np.array([[list(bytes.fromhex(text)) for text in look.pixels["thumbnails"]] for look in looks], np.int16)
    ones = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)
    means = thumbnails.mean(axis=-1)  # (looks, thumbnails): pictures whose means differ more differ more themselves
    same = {}
    for number in range(1, len(looks)):
        bits = (hashes[:number] ^ hashes[number]).view(np.uint16)  # (earlier, hashes * 4)
        distance = ones[bits].reshape(number, -1, 4).sum(axis=2, dtype=np.int16).max(axis=1)
        near = np.flatnonzero(distance <= SAME_BITS)
        near = near[np.abs(means[near] - means[number]).max(axis=1) < SAME_COLOUR]
        difference = np.abs(thumbnails[near] - thumbnails[number])
        alike = (difference.mean(axis=-1) < SAME_COLOUR).all(axis=1) & (difference.max(axis=-1) < SAME_CELL).all(axis=1)
        if alike.any():
            same[number] = int(near[alike.argmax()])
    return same
