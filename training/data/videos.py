"""Clips to RGB frames, by PyAV: time stamps, rotation and square pixels as a player has them."""

from __future__ import annotations

import functools
import io
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from .facts import Facts, Unreadable

UNEVEN = 0.2  # share of the usual distance of two frames by which others may differ before the rate counts as variable
RELIABLE = 0.9  # share of frames that must come in the order of their time stamps; else frames are counted by the rate alone
SEEK_FROM = 48  # frames that are sooner decoded than sought over
HD = 720  # lines from which on a video that names no colour matrix is taken as BT.709, as players do; below as BT.601


@dataclass(frozen=True)
class Scan:
    """The facts of a clip, and what finds its frames again: pts by frame, () where the file has none that can be relied on."""

    facts: Facts
    pts: tuple[int, ...]


def probe(source: Path | bytes) -> Facts:
    """The facts of a clip, from decoding all of it. Raises Unreadable where no frame can be, FileNotFoundError."""
    return scan(source).facts


def scan(source: Path | bytes) -> Scan:
    """As probe, with what read_frames needs. Of a file that has not changed it is kept."""
    if isinstance(source, bytes):
        return _scan(source)
    stat = source.stat()
    return _scan_file(source, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _scan_file(path, size, changed):
    return _scan(path)


def read_frames(source: Path | bytes, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames of these numbers, (H, W, 3) uint8 as shown but for the shape of their pixels, in the order asked for.

    A number may come more than once. Numbers that rise are read as a stream, one frame in memory at a time. Raises IndexError,
    Unreadable, FileNotFoundError.
    """
    found = scan(source)
    if not indices:
        return
    if min(indices) < 0 or max(indices) >= found.facts.frames:
        raise IndexError(f"{_name(source)}: frames {min(indices)} to {max(indices)} are asked for, it has {found.facts.frames}.")
    if any(b < a for a, b in zip(indices, indices[1:])):
        kept = dict(zip(rising := sorted(set(indices)), read_frames(source, rising)))
        yield from (kept[index] for index in indices)
        return
    given = 0  # how many of the indices have been answered
    for number, frame in _from(source, found, indices[0]):
        while given < len(indices) and indices[given] == number:
            if indices[given - 1] != number or not given:
                rgb = _rgb(frame)
            yield rgb
            given += 1
        if given == len(indices):
            return
    raise Unreadable("file.truncated", f"{_name(source)}: frame {indices[given]} was there before and cannot be decoded now. "
                                       "The file has changed: read the data set again.")


def _from(source, found: Scan, first: int):
    """(number, frame) from frame `first` on, or from one before it."""
    if found.pts and first >= SEEK_FROM:
        with _opened(source) as (container, stream):
            container.seek(found.pts[first], stream=stream)  # to the key frame before it
            expected = None
            for number, frame in _numbered(_decoded(container, stream), found):
                if expected is None and number > first:
                    break  # the seek went too far: from the start, then
                if expected not in (None, number):
                    raise Unreadable("file.unreadable", f"{_name(source)}: after seeking, its frames do not come in the order that "
                                                        "they have from the start. Convert it to MP4.")
                yield number, frame
                expected = number + 1
            else:
                if expected is not None:
                    return
    with _opened(source) as (container, stream):
        yield from _numbered(_decoded(container, stream), found)


def _numbered(frames, found: Scan):
    """(number, frame) of those that the scan counted."""
    if not found.pts:
        yield from enumerate(frame for frame, _ in frames if frame is not None)
        return
    numbers, last = {pts: number for number, pts in enumerate(found.pts)}, -1
    for frame, _ in frames:
        if frame is not None and (number := numbers.get(frame.pts, -1)) > last:
            yield number, frame
            last = number


def _scan(source) -> Scan:
    stamps, last, problems, sizes = [], None, [], set()
    interlaced, alpha, bits = False, False, 8
    with _opened(source) as (container, stream):
        header, rate = stream.frames, stream.average_rate
        stated, square = _stated_duration(container, stream), stream.sample_aspect_ratio or 1
        base = float(stream.time_base) if stream.time_base else 0
        for frame, problem in _decoded(container, stream):
            if problem:
                problems.append((len(stamps), problem))
            if frame is None:
                continue
            stamps.append(frame.pts)
            last = frame
            sizes.add((frame.width, frame.height))
            interlaced |= bool(frame.interlaced_frame)
            alpha |= any(component.is_alpha for component in frame.format.components)
            bits = max(bits, *(component.bits for component in frame.format.components))
    if last is None:
        said = problems[0][1] if problems else "it has none"
        raise Unreadable("file.unreadable", f"{_name(source)}: no frame can be decoded ({said}). Get the file again.")
    if len(sizes) > 1:
        raise Unreadable("file.unreadable", f"{_name(source)}: its frames are of several sizes ({_sizes(sizes)}). Convert it.")
    rising = _rising(stamps) if base else []
    stamped = len(rising) > RELIABLE * len(stamps)
    if stamped:
        stamps = rising
    step = 1 / float(rate) if rate else None
    if stamped:
        times = tuple((pts - stamps[0]) * base for pts in stamps)
    elif step or len(stamps) == 1:
        times = tuple(index * (step or 0) for index in range(len(stamps)))
    else:
        raise Unreadable("file.unreadable", f"{_name(source)}: neither time stamps nor a frame rate. Convert it to MP4.")
    distances = [b - a for a, b in zip(times, times[1:])]
    usual = statistics.median(distances) if distances else step
    # How long the last frame is shown: the header knows best. What decoders say of single frames is of others, with B frames.
    held = stated - times[-1] if stated and (not usual or 0 < stated - times[-1] <= 2 * usual) else usual
    turned = round(last.rotation / 90) * 90
    width, height = round(last.width * square), last.height
    if turned % 180:
        width, height = height, width
    damage = ""
    if problems:
        damage = f"{problems[0][1]} after {problems[0][0]} frames"
    elif stated and usual and stated - times[-1] - (held or 0) > max(0.1 * stated, 2 * usual):
        damage = f"{times[-1] + (held or 0):.2f} s can be decoded of {stated:.2f} s"
    facts = Facts(
        "video", width, height, rotation=turned, frames=len(times), frames_header=header,
        fps=len(distances) / times[-1] if distances else None,
        variable=bool(distances) and max(distances) - min(distances) > UNEVEN * usual + 2 * base,
        duration=times[-1] + held if held else None, duration_header=stated,
        alpha=alpha, bits=bits, interlaced=interlaced, damage=damage, times=times)
    return Scan(facts, tuple(stamps) if stamped else ())


def _rising(stamps) -> list[int]:
    """The time stamps that are beyond all before them; after damage decoders may give frames late, which players drop."""
    rising = []
    for pts in stamps:
        if pts is not None and (not rising or pts > rising[-1]):
            rising.append(pts)
    return rising


@contextmanager
def _opened(source):
    """(container, video stream). Only local files are opened, whatever a playlist names."""
    if not (len(source) if isinstance(source, bytes) else source.stat().st_size):
        raise Unreadable("file.empty", f"{_name(source)}: this file is empty, expected a video. Get it again.")
    try:
        container = av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source.absolute()),
                            options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except av.FFmpegError as error:
        raise Unreadable("file.unreadable", f"{_name(source)}: FFmpeg cannot open it ({error.strerror}), expected a video. It is "
                                            "cut short or something else: get it again.") from None
    with container:
        if not container.streams.video:
            if container.streams.audio:
                raise Unreadable("file.no_video", f"{_name(source)}: there is sound in it and no video. Take it out of the data.")
            raise Unreadable("file.unreadable", f"{_name(source)}: there is no video in it. It is cut short or something else: get "
                                                "it again.")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield container, stream


def _decoded(container, stream):
    """(frame, None) in the order of showing, and (None or frame, words) where something is damaged; it goes on after it."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError as error:
            yield None, error.strerror
            return
        if packet.is_corrupt:
            yield None, "a packet is cut short"
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            yield None, error.strerror
            continue
        for frame in frames:
            yield frame, "a frame is damaged" if frame.is_corrupt else None


def _rgb(frame) -> np.ndarray:
    """(H, W, 3) uint8, turned as the file says, over white where it is transparent."""
    matrix = None
    if frame.colorspace == 2:  # unspecified
        matrix = "ITU709" if min(frame.width, frame.height) >= HD else "ITU601"
    if any(component.is_alpha for component in frame.format.components):
        rgba = frame.reformat(format="rgba", src_colorspace=matrix).to_ndarray().astype(np.uint16)
        alpha = rgba[..., 3:]
        rgb = ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    else:
        rgb = frame.reformat(format="rgb24", src_colorspace=matrix).to_ndarray()
    return np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90)))


def _stated_duration(container, stream) -> float | None:
    """Seconds of video by the header; None where it is silent, or makes them of the number of frames, as AVI does."""
    if container.format.name == "avi":
        return None
    if stream.duration:
        return float(stream.duration * stream.time_base)
    try:  # Matroska: hours:minutes:seconds
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        end = 3600 * int(hours) + 60 * int(minutes) + float(seconds)
        return end - float((stream.start_time or 0) * stream.time_base)  # what it gives is the time at which the last frame ends
    except (KeyError, ValueError):
        return container.duration / av.time_base if container.duration and len(container.streams) == 1 else None


def _sizes(sizes) -> str:
    return ", ".join(f"{width} x {height}" for width, height in sorted(sizes))


def _name(source) -> str:
    return "the clip" if isinstance(source, bytes) else str(source)
