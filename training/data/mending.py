"""Mending what can be mended without a doubt. What is changed is written anew elsewhere: sources stay as they are."""

from __future__ import annotations

import os
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from . import media
from .caption_rules import fix
from .manifest import Row

QUALITY = "10"  # x264's crf of clips that are written anew: 0 is lossless, 18 looks the same
TICKS = 90_000  # a second: time stamps of any usual rate are whole numbers of them


def mend_captions(row: Row, trigger: str = "") -> list[str]:
    """Mend a row's captions in place, those written by hand excepted; returns what was done."""
    done = []
    captions = [fix(text, trigger) for text in row.captions]
    if captions != row.captions:
        row.captions = captions
        done.append(f"{row.file}: caption mended")
    if row.caption_auto and (text := fix(row.caption_auto["text"], trigger)) != row.caption_auto["text"]:
        row.caption_auto = {**row.caption_auto, "text": text}
        done.append(f"{row.file}: automatic caption mended")
    if trigger and not (row.captions or row.caption_auto or row.caption_manual):
        row.captions = [trigger]
        done.append(f"{row.file}: the trigger word is its caption")
    return done


def cropped_copy(source: Path | bytes, kind: str, sides: tuple[int, int, int, int], target: Path) -> None:
    """Write a picture (PNG) or clip (MP4 without sound) without so many pixels at (top, bottom, left, right).

    A clip keeps its time stamps; its sides are cut to even numbers, which the codec wants. Raises OSError and ValueError; the
    target is whole or not there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=".partial-", suffix=target.suffix)
    os.close(handle)
    try:
        if kind == "image":
            Image.fromarray(crop(media.read_picture(source), sides)).save(partial, "PNG")
        else:
            crop_clip(source, sides, partial)
        os.chmod(partial, 0o644)
        os.replace(partial, target)
    except BaseException:
        os.unlink(partial)
        raise


def crop(frame: np.ndarray, sides, even: bool = False) -> np.ndarray:
    top, bottom, left, right = sides
    height, width = frame.shape[0] - top - bottom, frame.shape[1] - left - right
    if even:
        width, height = width // 2 * 2, height // 2 * 2
    return np.ascontiguousarray(frame[top:top + height, left:left + width])


def crop_clip(source, sides, target: str) -> None:
    times = media.probe(source, "video").times
    with av.open(target, "w") as container:
        stream = None
        for time, frame in zip(times, media.read_frames(source, range(len(times)))):
            frame = crop(frame, sides, even=True)
            if stream is None:
                stream = container.add_stream("libx264", rate=TICKS, options={"crf": QUALITY})
                stream.width, stream.height, stream.pix_fmt = frame.shape[1], frame.shape[0], "yuv420p"
                stream.codec_context.time_base = Fraction(1, TICKS)
            frame = av.VideoFrame.from_ndarray(frame, "rgb24")
            frame.pts, frame.time_base = round(time * TICKS), Fraction(1, TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def clip_to_pictures(source: Path | bytes, seconds: float, folder: Path) -> list[Path]:
    """A frame of a clip every so many seconds, from its first on, as PNG files in the folder, which is whole or not there.

    A folder that is there is taken as it is. Raises OSError and ValueError.
    """
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as partial:
            whole = Path(partial) / "pictures"
            whole.mkdir()
            for number, (_, frame) in enumerate(media.pictures_of(source, seconds)):
                Image.fromarray(frame).save(whole / f"{number:06}.png")
            os.replace(whole, folder)
    return sorted(folder.glob("*.png"))
