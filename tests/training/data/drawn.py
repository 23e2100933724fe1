"""Pictures and clips that tests draw: each seed another one, textured, sharp, moving."""

from fractions import Fraction

import av
import numpy as np
from PIL import Image, ImageDraw

RATE = 16000  # samples of sound a second


def texture(seed, size):
    """A background of soft colour patches with fine grain, RGB."""
    rng = np.random.default_rng(seed)
    patches = Image.fromarray(rng.integers(40, 215, (4, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (size[1], size[0], 1))
    return Image.fromarray(np.clip(np.asarray(patches, np.float32) + grain, 0, 255).astype(np.uint8))


def picture(seed, size=(320, 320)):
    """A background with a few sharp shapes on it."""
    image, rng = texture(seed, size), np.random.default_rng(1000 + seed)
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = rng.integers(0, size[0]), rng.integers(0, size[1])
        side = max(4, int(rng.integers(min(size) // 8, min(size) // 3)))
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((x - side, y - side, x + side, y + side), colour, "white")
    return image


def frames(seed, count=17, size=(96, 64)):
    """A shape that moves before a background that drifts by a pixel a frame."""
    wide = picture(seed, (size[0] + count, size[1]))
    result = []
    for i in range(count):
        frame = wide.crop((i, 0, i + size[0], size[1]))
        x = 8 + 3 * i % size[0]
        ImageDraw.Draw(frame).rectangle((x, size[1] // 3, x + 15, size[1] // 3 + 15), "yellow", "black")
        result.append(frame)
    return result


def write_clip(path, pictures, fps=8, codec="libx264", pixels="yuv420p", times=None, codec_options=None, options=None,
               sound=0):
    """sound: seconds of silence beside it. times: milliseconds of each frame; otherwise they are 1 / fps apart."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=codec_options or {})
        stream.width, stream.height, stream.pix_fmt = *pictures[0].size, pixels
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        silence = container.add_stream("aac", rate=RATE, layout="mono") if sound else None
        for number, image in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.asarray(image), {"RGB": "rgb24", "RGBA": "rgba"}[image.mode])
            frame.pts = times[number] if times else number
            frame.time_base = Fraction(1, 1000) if times else Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            be_silent(container, silence, sound)
    return path


def write_sound(path, seconds=1):
    with av.open(str(path), "w") as container:
        be_silent(container, container.add_stream("aac", rate=RATE, layout="mono"), seconds)
    return path


def be_silent(container, stream, seconds):
    for number in range(seconds * RATE // 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = RATE, 1024 * number
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def turn(path, degrees=90):
    """Make an MP4 say that it is to be shown turned: its track header's matrix."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version and flags, times, numbers, volume: then nine numbers
    one = 0x00010000
    matrix = {90: (0, one, 0, -one, 0, 0), 180: (-one, 0, 0, 0, -one, 0)}[degrees]
    data[at:at + 24] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(data)
    return path
