"""Clips and pictures that say what they are: the grey of a frame is its number."""

import struct
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from sanacog.training.data import media
from sanacog.training.data.manifest import Row

STEP, FIRST = 5, 10  # frame n has the grey FIRST + STEP * n
UNEVEN = [0, 125, 250, 300, 350, 400, 800, 900, 1000, 1100, 1200, 1500, 1700, 1800, 1900, 2000]  # ms; beginnings of 16 frames


def grey(number, size=(96, 64)):
    """(H, W, 3) uint8 of frame `number`."""
    return np.full((size[1], size[0], 3), FIRST + STEP * number, np.uint8)


def number_of(frame):
    """The number of a decoded frame, by the middle of it."""
    level = float(np.asarray(frame)[frame.shape[0] // 2, frame.shape[1] // 2].mean())
    assert abs((level - FIRST) / STEP - round((level - FIRST) / STEP)) < 0.45, level
    return round((level - FIRST) / STEP)


def clip(path, frames=24, fps=8, size=(96, 64), codec="libx264", pix="yuv420p", times=None, options=None, aspect=None,
         stream_options=None, offset=0):
    """Write a clip. frames: how many grey ones, or arrays (H, W, 3). times: ms at which they begin, in place of fps."""
    frames = [grey(n, size) for n in range(frames)] if isinstance(frames, int) else frames
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=stream_options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix
        if aspect:
            stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        base = Fraction(1, 1000) if times else Fraction(1) / Fraction(fps)
        if times:
            stream.time_base = stream.codec_context.time_base = base
        for number, content in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(content, format="rgb24" if content.shape[2] == 3 else "rgba")
            frame.pts, frame.time_base = (times[number] if times else number) + offset, base
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def sound(path, seconds=1):
    """An mp4 with sound alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000 * seconds), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return path


def turned(path, quarter_turns):
    """Write into an mp4 that it is to be shown turned clockwise by so many quarters."""
    a, b = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns % 4]
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    content[place : place + 36] = struct.pack(">9i", a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def claims_frames(path, count):
    """Write into the header of an AVI that it has so many frames."""
    content = bytearray(path.read_bytes())
    place = content.index(b"strh") + 8 + 32
    content[place : place + 4] = struct.pack("<I", count)
    path.write_bytes(content)
    return path


def cut(path, share=0.6):
    """The same file without its end."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def circle(width, height, radius, x, y):
    """(H, W, 3) uint8: a white disc on black, its edge smooth."""
    rows, columns = np.mgrid[:height, :width]
    inside = np.clip(radius + 0.5 - np.hypot(columns - x, rows - y), 0, 1)
    return np.repeat((255 * inside[..., None]).astype(np.uint8), 3, 2)


def picture(path, content=None, size=(60, 40), **options):
    Image.fromarray(np.full((size[1], size[0], 3), 128, np.uint8) if content is None else content).save(path, **options)
    return path


def numbers(frames):
    return [number_of(frame) for frame in frames]


def noise(*shape):
    return np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)


def row_of(path, kind="video"):
    return media.probe_row(Row(path.name, kind), path.parent)
