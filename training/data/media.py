"""Pictures and clips: what is known of a file, and the tensor that a row becomes in its bucket."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from . import contents, pictures, timing, videos
from .buckets import Bucket, Placed, cover
from .facts import Facts, Unreadable
from .manifest import Row
from .pictures import read_picture


def probe(source: Path | bytes, kind: str | None = None) -> Facts:
    """The facts of a picture, a clip or a folder of pictures, which is decoded whole.

    source: a path, or the bytes of a file. kind: "image" or "video"; None goes by the ending of the name, and tries a picture
    first for bytes. Raises Unreadable, FileNotFoundError.
    """
    if isinstance(source, Path):
        if source.is_dir():
            return _probe_folder(source)
        if not source.exists():
            raise FileNotFoundError(f"{source}: there is no such file. It was moved or deleted: read the data set again.")
        kind = kind or contents.kind_of(source.name)
    if kind == "video":
        return videos.probe(source)
    try:
        return pictures.probe(source)
    except Unreadable as error:
        if kind or error.reason != "file.unreadable":
            raise
        return videos.probe(source)


def probe_row(row: Row, folder) -> Row:
    """The row with what its file holds: sha256, size, frames, times; of status "error" with the reason where not all can be read.

    folder: what the names in the row are relative to.
    """
    try:
        source = contents.locate(folder, row.file)
        facts = probe(source, row.kind)
    except (Unreadable, FileNotFoundError) as error:
        reason = error.reason if isinstance(error, Unreadable) else "file.missing"
        return _failed(row, reason)
    row = dataclasses.replace(row, sha256=contents.sha256_of(folder, row.file), width=facts.width, height=facts.height,
                               frames=facts.frames if row.kind == "video" else 1, fps=facts.fps, duration=facts.duration)
    return _failed(row, "file.truncated") if facts.damage else row


def _failed(row: Row, reason: str) -> Row:
    return dataclasses.replace(row, status="error", reasons=[*dict.fromkeys([*row.reasons, reason])])


def read_frames(source: Path | bytes, indices: Sequence[int] | None = None,
                times: Sequence[float] | None = None) -> Iterator[np.ndarray]:
    """Frames of a clip or a folder of pictures, (H, W, 3) uint8, as shown but for the shape of their pixels.

    By numbers, or by times in seconds from the first frame: the frame shown then. Raises Unreadable, IndexError.
    """
    folder = isinstance(source, Path) and source.is_dir()
    if times is not None:
        if folder:
            raise ValueError(f"{source}: a folder of pictures has no times. Ask for its frames by number.")
        indices = [timing.shown_at(videos.probe(source).times, time) for time in times]
    if folder:
        files = contents.pictures_in(source)
        return (read_picture(files[index]) for index in indices)
    return videos.read_frames(source, indices)


def pictures_of(source: Path | bytes, every: float) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds, (H, W, 3) uint8) of a clip at 0, every, 2 * every ... seconds, square pixels. Raises Unreadable, ValueError."""
    if not every > 0:
        raise ValueError(f"A picture every {every} seconds does not go: give a number above 0.")
    facts = videos.probe(source)
    times = [k * every for k in range(timing.available(facts.frames, facts.duration, 1 / every))]
    for time, frame in zip(times, read_frames(source, times=times)):
        if frame.shape[:2] != (facts.height, facts.width):
            frame = _scaled(frame, (facts.height, facts.width)).movedim(0, -1).numpy()
        yield time, frame


def load(row: Row, placed: Placed, folder, *, fps: float | None = None, window: str = "head", clip: int = 0,
         pad_last: bool = False) -> torch.Tensor:
    """A row as its bucket has it: (C, F, H, W) float32 in [-1, 1]; C is 3, F 1 for a picture.

    placed: of buckets.place, with the same fps and pad_last. folder: what the names in the row are relative to. fps: the rate
    that a clip is brought to by its time stamps, None for its own. window, clip: which part, see timing.samples; `clip` numbers
    the samples. Pixels are scaled by the cubic filter, antialiased, to 8 bits as Pillow does. Raises Unreadable,
    FileNotFoundError, and ValueError for a file that is not what the row says.
    """
    source = contents.locate(folder, row.file)
    if row.kind == "image":
        frame = _read_picture(source, row.file)
        _same_size(row, frame.shape[1], frame.shape[0])
        return to_bucket([frame], placed)
    indices = clip_frames(row, source, placed.bucket.frames, fps, window, pad_last)
    if clip >= len(indices):
        raise ValueError(f"{row.file}: it has {len(indices)} samples of {placed.bucket.frames} frames by its content, sample "
                         f"{clip} was asked for. The file or the settings have changed: make the manifest anew.")
    return to_bucket(read_frames(source, indices[clip]), placed)


def load_picture(file: str, folder, bucket: Bucket) -> torch.Tensor:
    """A first picture or a condition (row.image), scaled to cover a bucket by its own size: (C, 1, H, W) as load gives it."""
    frame = _read_picture(contents.locate(folder, file), file)
    return to_bucket([frame], cover(*frame.shape[:2], bucket))


def clip_frames(row: Row, source, frames: int, fps: float | None, window: str, pad_last: bool) -> list[list[int]]:
    """The file's own frame numbers of every sample of `frames` frames of a clip."""
    if isinstance(source, Path) and source.is_dir():
        shown = list(range(len(contents.pictures_in(source))))
    else:
        facts = videos.probe(source)
        _same_size(row, facts.width, facts.height)
        timed = fps is not None and facts.duration is not None
        shown = timing.at_rate(facts.times, facts.duration, fps) if timed else list(range(facts.frames))
    return [[shown[position] for position in sample] for sample in timing.samples(len(shown), frames, window, pad_last)]


def to_bucket(frames, placed: Placed) -> torch.Tensor:
    """Frames (H, W, 3) uint8, scaled and cut: (C, F, H, W) float32 in [-1, 1]."""
    bucket, made, last = placed.bucket, [], None
    for frame in frames:
        if last is frame and made:  # one that is shown more than once
            made.append(made[-1])
            continue
        last = frame
        scaled = _scaled(frame, placed.resize)
        made.append(scaled[:, placed.top : placed.top + bucket.height, placed.left : placed.left + bucket.width])
    return torch.stack(made, 1).float() / 127.5 - 1


def _scaled(frame: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """(C, H, W) uint8 of (H, W, C) uint8; a clip whose pixels are not square gets them so here."""
    tensor = torch.from_numpy(np.array(frame)).movedim(-1, 0)
    if tuple(tensor.shape[1:]) == tuple(size):
        return tensor
    return F.interpolate(tensor[None], size, mode="bicubic", align_corners=False, antialias=True)[0]


def _read_picture(source, file: str) -> np.ndarray:
    if isinstance(source, Path) and source.is_dir():
        raise ValueError(f"{file}: this is a folder, its row says that it is a picture. Make the manifest anew.")
    return read_picture(source)


def _same_size(row: Row, width: int, height: int) -> None:
    if (width, height) != (row.width, row.height):
        raise ValueError(f"{row.file}: it is {width} x {height}, its row says {row.width} x {row.height}. The file has changed: "
                         "make the manifest anew.")


def _probe_folder(folder: Path) -> Facts:
    files = contents.pictures_in(folder)
    if not files:
        raise Unreadable("file.empty", f"{folder}: there are no pictures in this folder, expected the frames of a clip.")
    every = [pictures.probe(file) for file in files]
    for file, facts in zip(files, every):
        if (facts.width, facts.height) != (every[0].width, every[0].height):
            raise Unreadable("file.unreadable", f"{file}: it is {facts.width} x {facts.height}, the first picture of the folder "
                                                f"{every[0].width} x {every[0].height}. Make them of one size.")
    return Facts("video", every[0].width, every[0].height, frames=len(files), alpha=any(facts.alpha for facts in every),
                 bits=max(facts.bits for facts in every))
