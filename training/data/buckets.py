"""The sizes that are trained on, and which of them a picture or clip goes to: it is scaled until it covers the bucket, and what
is over is cut off evenly. Nothing is ever stretched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ...sana_core.aspect_ratios import trained_sizes
from . import timing
from .manifest import Row


class Bucket(NamedTuple):
    """frames: 1 for pictures. height, width: pixels."""

    frames: int
    height: int
    width: int

    def __str__(self):
        return f"{self.frames} x {self.height} x {self.width}" if self.frames > 1 else f"{self.height} x {self.width}"


class Placed(NamedTuple):
    """resize: (height, width) that it is scaled to; top, left: where the bucket is cut out of it, pixels. enlarged: how many
    times each side is enlarged, 1 when it is not. cropped: the share of its area that is cut off, 0 to 1."""

    bucket: Bucket
    resize: tuple[int, int]
    top: int
    left: int
    enlarged: float
    cropped: float


class Unplaced(ValueError):
    """There is no bucket for a row. reason: the code that stands in the manifest."""

    def __init__(self, reason: str, sentence: str):
        super().__init__(sentence)
        self.reason = reason


def sana(resolution: int | str) -> list[Bucket]:
    """The buckets that Sana was trained with at 512, 1024, 2048 ("2K"), 2880 or 4096 ("4K") px. Raises ValueError."""
    return [Bucket(1, height, width) for height, width in trained_sizes(resolution)]


def clips(counts: Iterable[int], sizes: Iterable[tuple[int, int]]) -> list[Bucket]:
    """Every frame count with every (height, width)."""
    sizes = list(sizes)
    return [Bucket(frames, height, width) for frames in counts for height, width in sizes]


def check(buckets: Sequence[Bucket], side: int, frames: Sequence[int] | None = None) -> None:
    """Raise ValueError for a bucket that a model cannot take. side: what height and width must be multiples of. frames: the
    frame counts that the model takes, of clips."""
    if not buckets:
        raise ValueError("There are no buckets: name at least one size.")
    for bucket in buckets:
        if min(bucket) < 1 or bucket.height % side or bucket.width % side:
            raise ValueError(f"The bucket {bucket} does not go: height and width must be multiples of {side} px.")
        if bucket.frames > 1 and frames is not None and bucket.frames not in frames:
            near = min(frames, key=lambda count: abs(count - bucket.frames))
            raise ValueError(f"The bucket {bucket} does not go: the model takes no {bucket.frames} frames, the nearest is {near}.")


# Frames of the clips: 1.0 was trained with 8 N + 1, at most 49; 1.5 with 16 N + 1, whose latents are padded in front by one.
COGVIDEOX_FRAMES = tuple(range(9, 50, 8))
COGVIDEOX_1_5_FRAMES = tuple(range(17, 162, 16))
COGVIDEOX = clips(COGVIDEOX_FRAMES, [(480, 720)])
COGVIDEOX_1_5 = clips([count for count in COGVIDEOX_1_5_FRAMES if count <= 81], [(768, 1360)])


def cover(height: int, width: int, bucket: Bucket) -> Placed:
    """Scale a picture of this size until it covers the bucket, and cut the middle out."""
    scale = max(bucket.height / height, bucket.width / width)
    # Rounding must not take the last row of a picture that only just covers.
    resize = max(bucket.height, round(height * scale)), max(bucket.width, round(width * scale))
    cropped = 1 - bucket.height * bucket.width / (height * width * scale * scale)
    return Placed(bucket, resize, (resize[0] - bucket.height) // 2, (resize[1] - bucket.width) // 2, max(1.0, scale),
                  max(0.0, cropped))


def place(row: Row, buckets: Sequence[Bucket], fps: float | None = None, pad_last: bool = False) -> Placed:
    """The bucket of a row, and how it gets there: of those with the most frames that fit, the one of the nearest shape.

    fps: the rate that clips are brought to, None for their own. A clip
    too short for all buckets goes to the shortest if pad_last. Nearest by the difference of height / width, as in NVlabs'
    data sets, which round it to two digits. Raises Unplaced: "clip.too_short", "picture.no_bucket"; ValueError for a row that
    was not probed.
    """
    if min(row.width, row.height, row.frames) < 1:
        raise ValueError(f"{row.file}: width, height and frames are {row.width}, {row.height}, {row.frames} in its row, expected "
                         "what is in the file. Make the manifest with: python run.py dataset.")
    fitting = [bucket for bucket in buckets if (bucket.frames == 1) == (row.kind == "image")]
    if not fitting:
        kind, other = ("clip", "pictures") if row.kind == "video" else ("picture", "clips")
        raise Unplaced("picture.no_bucket", f"{row.file}: it is a {kind}, and the buckets are for {other} alone."
                       + (" --frames-to-pictures of run.py dataset makes pictures of clips." if kind == "clip" else ""))
    if row.kind == "video":
        found = timing.available(row.frames, row.duration, fps)
        count = timing.frames_that_fit(found, [bucket.frames for bucket in fitting])
        if count is None and pad_last:
            count = min(bucket.frames for bucket in fitting)
        if count is None:
            rate = f" at {fps:g} frames a second" if fps else ""
            raise Unplaced("clip.too_short", f"{row.file}: it has {found} frames{rate}, the shortest bucket has "
                                             f"{min(bucket.frames for bucket in fitting)}.")
        fitting = [bucket for bucket in fitting if bucket.frames == count]
    shape = row.height / row.width
    return cover(row.height, row.width, min(fitting, key=lambda bucket: abs(bucket.height / bucket.width - shape)))
