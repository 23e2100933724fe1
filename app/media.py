"""What a person gives: pictures, masks, sketches and videos, made what the workflows take. Files are bytes here."""

import io

import av
import numpy as np
from PIL import Image, ImageOps

CELL = 32  # Sana's latents are 1/32 of the picture


class Told(ValueError):
    """What is wrong and what to do, for the person at the page."""


def fitted(size, preset):
    """(width, height) to draw a picture of this size in: its shape, the area that the model was made for, whole cells. An embedded
    model knows its own size alone, and a model of videos too."""
    if preset.frames or preset.width < 512:
        return preset.width, preset.height
    ratio = min(max(size[0] / size[1], 1 / 4), 4)  # the shapes that Sana was trained in
    width = (preset.width * preset.height * ratio) ** 0.5
    return tuple(max(CELL, round(side / CELL) * CELL) for side in (width, width / ratio))


def png(picture):
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def picture_file(picture, preset):
    """(PNG, (width, height)) of a PIL image, cut to the size that suits."""
    if picture is None:
        raise Told("Choose a picture first.")
    size = fitted(picture.size, preset)
    return png(ImageOps.fit(flat(picture), size)), size


def mask_file(drawn, preset):
    """The same of what a person painted over, with the painted part transparent, as Load Image takes a mask.

    drawn: the editor's {background, layers, composite}.
    """
    if not drawn or drawn["background"] is None or not opaque(drawn["background"]):
        raise Told("Choose a picture first.")
    picture, layers = drawn["background"], drawn["layers"]
    painted = np.zeros((picture.height, picture.width), np.uint8)
    for layer in layers:
        painted = np.maximum(painted, np.array(layer.resize(picture.size).getchannel("A")))
    if not (painted > 127).any():
        raise Told("Paint over the part that is to be drawn anew.")
    size = fitted(picture.size, preset)
    whole = ImageOps.fit(flat(picture), size)
    whole.putalpha(ImageOps.invert(ImageOps.fit(Image.fromarray(painted), size)))
    return png(whole), size


def sketch_file(drawn, preset):
    """The same of a sketch: dark on light, or a picture. Its edges guide the drawing."""
    composite = drawn and drawn["composite"]
    if composite is None or not opaque(composite) or flat(composite).convert("L").getextrema() in ((255, 255), (0, 0)):
        raise Told("Draw a shape first, or choose a picture.")
    return picture_file(composite, preset)


def opaque(picture):
    """Whether there is anything to see."""
    return picture.mode != "RGBA" or picture.getchannel("A").getextrema()[1] > 0


def flat(picture):
    """RGB, upright, with white where it was transparent."""
    picture = ImageOps.exif_transpose(picture).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def video_file(path, preset, frames):
    """(MP4, number of frames) of a video's first `frames` frames at the model's rate and size, or as many of them as there are,
    one more than a multiple of the model's step. Raises Told."""
    if not path:
        raise Told("Choose a video first.")
    try:
        with av.open(str(path)) as file:
            pictures = list(at_rate(file, preset.fps, frames))
    except (av.FFmpegError, IndexError) as error:
        raise Told("This is not a video that can be read; MP4 with H.264 always can.") from error
    count = (len(pictures) - 1) // preset.frame_step * preset.frame_step + 1
    if count <= 1:
        raise Told(f"The video is too short: the model needs {preset.frame_step + 1} frames, {preset.fps:g} a second.")
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=round(preset.fps), options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = preset.width, preset.height, "yuv420p"
        for picture in pictures[:count]:
            fitting = ImageOps.fit(picture, (preset.width, preset.height))
            file.mux(stream.encode(av.VideoFrame.from_image(fitting)))
        file.mux(stream.encode())
    return data.getvalue(), count


def at_rate(file, fps, most):
    """Up to `most` pictures of an open video: at each 1/fps second the one that is shown then."""
    stream, given, start = file.streams.video[0], 0, None
    for frame in file.decode(stream):
        now = frame.time or 0.0
        start = now if start is None else start
        end = now - start + 1 / float(stream.average_rate or fps)
        while given < most and given / fps < end - 1e-6:
            yield frame.to_image()
            given += 1
        if given == most:
            return
