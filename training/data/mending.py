"""Mending what can be mended without a doubt. What is changed is written anew elsewhere: sources stay as they are."""

from __future__ import annotations

import os
import tempfile
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

from .caption_rules import fix
from .looks import Look, opened, read_clip, read_picture
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


def cropped_copy(source, kind: str, sides: tuple[int, int, int, int], target: Path) -> None:
    """Write a picture (PNG) or clip (MP4 without sound) without so many pixels at (top, bottom, left, right).

    source: a path or bytes. A clip keeps its time stamps; its sides are cut to even numbers, which the codec wants.
    Raises OSError and ValueError; the target is whole or not there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=".partial-", suffix=target.suffix)
    os.close(handle)
    try:
        if kind == "image":
            crop(read_picture(opened(source), Look()), sides).save(partial, "PNG")
        else:
            crop_clip(source, sides, partial)
        os.chmod(partial, 0o644)
        os.replace(partial, target)
    except BaseException:
        os.unlink(partial)
        raise


def crop(picture: Image.Image, sides, even: bool = False) -> Image.Image:
    top, bottom, left, right = sides
    width, height = picture.width - left - right, picture.height - top - bottom
    if even:
        width, height = width // 2 * 2, height // 2 * 2
    return picture.crop((left, top, left + width, top + height))


def crop_clip(source, sides, target: str) -> None:
    with av.open(target, "w") as container:
        stream = None
        for time, frame in read_clip(opened(source), Look()):
            frame = crop(frame, sides, even=True)
            if stream is None:
                stream = container.add_stream("libx264", rate=TICKS, options={"crf": QUALITY})
                stream.width, stream.height, stream.pix_fmt = *frame.size, "yuv420p"
                stream.codec_context.time_base = Fraction(1, TICKS)
            frame = av.VideoFrame.from_image(frame)
            frame.pts, frame.time_base = round(time * TICKS), Fraction(1, TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def clip_to_pictures(source, seconds: float, folder: Path) -> list[Path]:
    """A frame of a clip every so many seconds, from its first on, as PNG files in the folder, which is whole or not there.

    A folder that is there is taken as it is. Raises what PyAV does.
    """
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as partial:
            pictures = Path(partial) / "pictures"
            pictures.mkdir()
            due = None
            for number, (time, picture) in enumerate(read_clip(opened(source), Look())):
                due = time if due is None else due
                if time >= due - 1e-6:
                    picture.save(pictures / f"{number:06}.png")
                    while due <= time + 1e-6:
                        due += seconds
            os.replace(pictures, folder)
    return sorted(folder.glob("*.png"))
