"""Looking at a file once, from its first frame to its last: what checks.py judges, in numbers that can be kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from . import media
from .contents import locate, sha256_of
from .facts import Facts, Unreadable
from .manifest import Row
from .pixels import Pixels


@dataclass
class Look:
    """A file's figures. `problem` is the code of what kept it from being read to its end, `said` says it in words."""

    sha256: str = ""
    problem: str | None = None
    said: str = ""
    width: int = 0   # as shown, in square pixels
    height: int = 0
    frames: int = 0  # decoded
    header_frames: int | None = None
    fps: float | None = None
    duration: float | None = None  # seconds
    distances: list[float] = field(default_factory=list)  # seconds between frames, the shortest and the longest
    variable: bool = False
    rotation: int = 0  # degrees
    mirrored: bool = False
    interlaced: bool = False
    alpha: bool = False  # transparent in places
    bits: int = 8    # a channel
    pixels: dict = field(default_factory=dict)  # see Pixels.figures

    def to_json(self) -> dict:
        return asdict(self)


def look_at(folder: Path, file: str, kind: str) -> Look:
    """Read a row's picture, clip or folder of pictures, named as in a manifest in `folder`. kind: "image" or "video".

    Never raises for what is in the file.
    """
    look = Look()
    try:
        source = locate(folder, file)
        take_facts(look, media.probe(source, kind))
        look.sha256 = sha256_of(folder, file)
        if not look.problem:
            pixels = Pixels()
            for frame in frames_of(source, kind, range(look.frames)):
                pixels.add(frame)
            look.pixels = pixels.figures()
    except FileNotFoundError as error:
        look.problem, look.said = "file.missing", without_name(error)
    except Unreadable as error:
        look.problem, look.said = error.reason, without_name(error)
    except (OSError, ValueError) as error:
        look.problem, look.said = "file.unreadable", without_name(error)
    return look


def without_name(error: Exception) -> str:
    """An error's sentence without the file's name in front, which stands beside it in the report."""
    return str(error).partition(": ")[2] or str(error)


def take_facts(look: Look, facts: Facts) -> None:
    distances = np.diff(facts.times)
    look.width, look.height, look.frames = facts.width, facts.height, facts.frames
    look.header_frames = facts.frames_header or None
    look.fps, look.duration, look.variable = facts.fps, facts.duration, facts.variable
    look.distances = [float(distances.min()), float(distances.max())] if len(distances) else []
    look.rotation, look.mirrored = facts.rotation, facts.mirrored
    look.interlaced, look.alpha, look.bits = facts.interlaced, facts.alpha, facts.bits
    if facts.damage:
        look.problem, look.said = "file.truncated", facts.damage


def frames_of(source: Path | bytes, kind: str, numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """Frames of these numbers, (H, W, 3) uint8. Raises Unreadable, FileNotFoundError."""
    return iter([media.read_picture(source)]) if kind == "image" else media.read_frames(source, numbers)


def some_frames(row: Row, folder: Path, count: int) -> list[Image.Image]:
    """Up to `count` frames from all over a row, named as in a manifest in `folder`, as PIL pictures with square pixels.

    Raises OSError and ValueError.
    """
    count = max(1, min(count, row.frames))
    wanted = sorted({round((number + 0.5) * row.frames / count - 0.5) for number in range(count)})
    frames = map(Image.fromarray, frames_of(locate(folder, row.file), row.kind, wanted))
    size = (row.width, row.height)
    return [frame if frame.size == size else frame.resize(size) for frame in frames]
