"""Figures of a picture's or a clip's pixels, taken in one pass over the frames. What they mean is for checks.py to say."""

from __future__ import annotations

import numpy as np
from PIL import Image

SMALL = 96     # pixels, long side at which frames are compared with each other
MEDIUM = 512   # pixels, long side at which sharpness is measured
BRIGHT = 28    # of 255: more is no black bar; black of 16..235 video may stand as 16
BAR_NOISE = 0.005  # share of bright pixels that a line of a black bar may have
BAR_EDGE = 0.6     # share of bright pixels that one of the first lines beside it must have: a straight edge
EDGE_LINES = 4     # lines beside a bar among which the edge is looked for: compression blurs it
SHARPEST = 0.001   # share of the pixels that sharpness is measured on
SHARP_EVERY = 8    # frames
CUT = 25.0         # of 255, between neighbouring frames; PySceneDetect has 27, Panda-70M 25
CUT_AGAINST = 3.0  # times what changes around it: fast motion is no cut
GRID = 8           # cells along each side for "where does it move"


class Pixels:
    """Collects figures of frames: `add` each one in order, then `figures`."""

    def __init__(self):
        self.rows = self.columns = None     # largest share of bright pixels of each line, over the frames
        self.sharpness = self.spread = 0.0
        self.low, self.high = 255.0, 0.0    # 2nd and 98th percentile of brightness, over all frames
        self.brightness, self.changes, self.changes_of_two = [], [], []
        self.hashes, self.thumbnails = [], []
        self.moved_mean = self.moved_most = 0.0
        self._before = self._before_that = self._first = None

    def add(self, frame: np.ndarray) -> None:
        """frame: (H, W, 3) uint8, as shown."""
        frame = Image.fromarray(frame)
        grey = np.asarray(frame.convert("L"))
        bright = grey > BRIGHT
        rows, columns = bright.mean(axis=1), bright.mean(axis=0)
        if self.rows is None:
            self.rows, self.columns = rows, columns
        elif len(rows) == len(self.rows) and len(columns) == len(self.columns):  # a size that changes says nothing of bars
            self.rows, self.columns = np.maximum(rows, self.rows), np.maximum(columns, self.columns)
        if len(self.brightness) % SHARP_EVERY == 0:
            self.sharpness = max(self.sharpness, sharpness(frame))
        small = frame.resize(fit(frame.size, SMALL) if self._first is None else self._first_size, Image.Resampling.BOX)
        grey = np.asarray(small.convert("L"), np.float32)
        self.low, self.high = min(self.low, np.percentile(grey, 2)), max(self.high, np.percentile(grey, 98))
        self.spread = max(self.spread, np.asarray(small, np.float32).std(axis=(0, 1)).max())
        self.brightness.append(float(grey.mean()))
        self.hashes.append(difference_hash(small))
        self.thumbnails.append(np.asarray(small.resize((8, 8), Image.Resampling.BOX)).tobytes().hex())

        hsv = np.asarray(small.convert("HSV"), np.float32)
        if self._first is None:
            self._first, self._first_size = grey, small.size
        else:
            self.changes.append(hsv_difference(self._before, hsv))
            cells = cell_means(np.abs(grey - self._first))
            self.moved_mean = max(self.moved_mean, float(cells.mean()))
            self.moved_most = max(self.moved_most, float(cells.max()))
        if self._before_that is not None:
            self.changes_of_two.append(hsv_difference(self._before_that, hsv))
        self._before_that, self._before = self._before, hsv

    def figures(self) -> dict:
        """Numbers, lists and strings for JSON; {} when no frame came."""
        if self.rows is None:
            return {}
        last = len(self.hashes) - 1
        at = sorted({round(last * share) for share in (0.1, 0.5, 0.9)})
        top, bottom = bars(self.rows)
        left, right = bars(self.columns)
        light = np.asarray(self.brightness)
        cuts, flashes = jumps_at(self.changes, self.changes_of_two)
        jumps = np.abs(light[1:-1] - (light[:-2] + light[2:]) / 2)
        return {
            "sharpness": round(float(self.sharpness), 5), "spread": round(float(self.spread), 3),
            "low": round(float(self.low), 2), "high": round(float(self.high), 2),
            "size": [len(self.columns), len(self.rows)], "bars": [top, bottom, left, right],
            "hashes": [self.hashes[i] for i in at], "thumbnails": [self.thumbnails[i] for i in at],
            "moved_mean": round(self.moved_mean, 3), "moved_most": round(self.moved_most, 3),
            "flicker": round(float(np.median(jumps)), 3) if len(jumps) else 0.0,
            "cuts": cuts, "flashes": flashes,
        }


def fit(size, long_side) -> tuple[int, int]:
    """The size scaled down until no side is longer than `long_side`."""
    scale = min(1.0, long_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def sharpness(picture: Image.Image) -> float:
    """Strongest curvature over contrast, of the colour with most contrast: the mean of the largest SHARPEST of
    |Laplacian|, at MEDIUM pixels.

    An edge that is blurred with standard deviation s pixels has 0.24 / s^2. Unlike the variance of the Laplacian it does not
    depend on how much of the picture is plain.
    """
    channels = np.asarray(picture.resize(fit(picture.size, MEDIUM), Image.Resampling.BOX), np.float32)
    contrasts = channels.max(axis=(0, 1)) - channels.min(axis=(0, 1))
    if min(channels.shape[:2]) < 3 or contrasts.max() < 8:
        return 1.0  # there is nothing to be sharp
    grey, contrast = channels[..., contrasts.argmax()], float(contrasts.max())  # the one that rounding disturbs least
    inner = grey[1:-1, 1:-1]
    laplacian = np.abs(grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner).ravel()
    count = max(16, round(SHARPEST * laplacian.size))
    strongest = np.partition(laplacian, -count)[-count:] if count < laplacian.size else laplacian
    return float(strongest.mean()) / contrast


def bars(shares: np.ndarray) -> tuple[int, int]:
    """Lines of black bars at the start and the end. shares: of bright pixels, a line each."""
    content = np.flatnonzero(shares > BAR_NOISE)
    if not len(content):
        return 0, 0
    first, last = int(content[0]), int(content[-1])
    edges = shares[first:first + EDGE_LINES].max(), shares[max(last - EDGE_LINES + 1, 0):last + 1].max()
    before, after = first, len(shares) - 1 - last
    return (before, after) if min(edges) >= BAR_EDGE else (0, 0)


def difference_hash(picture: Image.Image) -> str:
    """64 bits, in hexadecimal: is a cell of a 9 x 8 grid brighter than the one to its right, by more than noise."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return np.packbits(grey[:, :-1] > grey[:, 1:] + 1).tobytes().hex()


def hsv_difference(one: np.ndarray, two: np.ndarray) -> float:
    """Mean difference of hue, saturation and value, 0 to 255. Hue counts as far as both pixels have colour."""
    difference = np.abs(one - two)
    hue = np.minimum(difference[..., 0], 256 - difference[..., 0]) * 180 / 256
    hue *= np.minimum(one[..., 1], two[..., 1]) / 255
    return float((hue + difference[..., 1] + difference[..., 2]).mean() / 3)


def jumps_at(changes: list[float], changes_of_two: list[float]) -> tuple[list[int], list[int]]:
    """(numbers of the first frames after a hard cut, numbers of single frames unlike their neighbours).

    changes[i]: from frame i to i + 1; changes_of_two[i]: from frame i to i + 2.
    """
    cuts, flashes, i = [], [], 0
    while i < len(changes):
        around = changes[max(i - 3, 0):i] + changes[i + 1:i + 4]
        usual = float(np.median(around)) if around else 0.0
        if changes[i] < CUT or changes[i] < CUT_AGAINST * usual:
            i += 1
        elif i + 1 < len(changes) and changes[i + 1] >= CUT and changes_of_two[i] < changes[i] / 2:
            flashes.append(i + 1)
            i += 2  # the way back from the flash is no cut
        else:
            cuts.append(i + 1)
            i += 1
    return cuts, flashes


def cell_means(values: np.ndarray) -> np.ndarray:
    """Means over a grid of GRID x GRID cells."""
    rows = np.array_split(np.arange(values.shape[0]), min(GRID, values.shape[0]))
    columns = np.array_split(np.arange(values.shape[1]), min(GRID, values.shape[1]))
    return np.array([[values[row[0]:row[-1] + 1, column[0]:column[-1] + 1].mean() for column in columns] for row in rows])
