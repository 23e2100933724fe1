"""Pictures to RGB, by Pillow: as a viewer shows them, over white where they are transparent."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from .facts import Facts, Unreadable

_ORIENTATION = 0x0112  # Exif tag
# Exif orientation -> (degrees counterclockwise, mirrored).
_TURNS = {2: (0, True), 3: (180, False), 4: (180, True), 5: (90, True), 6: (-90, False), 7: (-90, True), 8: (90, False)}


def read_picture(source: Path | bytes) -> np.ndarray:
    """(H, W, 3) uint8 sRGB of a file or its bytes; of several pictures in it the first.

    Turned as Exif says, colours of other spaces brought to sRGB by their profile, 16 bits scaled to 8, what is transparent
    laid over white. Raises Unreadable, FileNotFoundError.
    """
    return np.asarray(_read(source)[0])


def probe(source: Path | bytes) -> Facts:
    """The facts of a picture, which is decoded whole. Raises Unreadable, FileNotFoundError."""
    picture, facts = _read(source)
    return Facts("image", picture.width, picture.height, **facts)


def _read(source):
    name = "the picture" if isinstance(source, bytes) else str(source)
    if not (len(source) if isinstance(source, bytes) else source.stat().st_size):
        raise Unreadable("file.empty", f"{name}: this file is empty, expected a picture. Get it again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged Exif, sizes near the limit: the picture itself is what counts
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
                frames = getattr(picture, "n_frames", 1)
                turn = _TURNS.get(picture.getexif().get(_ORIENTATION), (0, False))
                picture.load()
                bits = _bits(picture, source)
                rgb, alpha = _to_rgb(ImageOps.exif_transpose(picture), name)
    except Unreadable:
        raise
    except Image.UnidentifiedImageError:
        raise Unreadable("file.unreadable", f"{name}: no picture format that Pillow knows. Convert it, or get it again.") from None
    except Image.DecompressionBombError as error:
        raise Unreadable("file.unreadable", f"{name}: {error} Make it smaller.") from None
    except (OSError, SyntaxError, ValueError, TypeError, RuntimeError, LookupError, struct.error) as error:  # of Pillow's readers
        cut = "truncated" in str(error) or "unpack" in str(error)
        raise Unreadable("file.truncated" if cut else "file.unreadable",
                         f"{name}: {error}. The file is {'cut short' if cut else 'damaged'}: get it again.") from None
    return rgb, dict(rotation=turn[0], mirrored=turn[1], frames_header=frames, alpha=alpha, bits=bits)


def _bits(picture, source) -> int:
    """Bits of a channel. Pillow opens a PNG of 3 x 16 bits as one of 8, so its header is asked."""
    if picture.format == "PNG":
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            return file.read(25)[24]
    return 16 if picture.mode.startswith("I") else 32 if picture.mode == "F" else 1 if picture.mode == "1" else 8


def _to_rgb(picture, name):
    """(picture in RGB, whether something is transparent)."""
    profile = picture.info.get("icc_profile")
    if picture.mode == "F":
        raise Unreadable("file.unreadable", f"{name}: its numbers are floating point, of unknown range, expected 8 or 16 bits. "
                                            "Convert it.")
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) / 257 + 0.5).astype(np.uint8))
    alpha = picture.has_transparency_data
    if alpha:
        picture = picture.convert("RGBA")
        mask = picture.getchannel("A")
        alpha = mask.getextrema()[0] < 255
    elif picture.mode not in ("RGB", "CMYK", "L"):
        picture = picture.convert("RGB")
    if profile and picture.mode != "L":
        picture = _to_srgb(picture, profile)
    if picture.mode == "RGBA":
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture.convert("RGB"), mask=mask)
        return white, alpha
    return picture.convert("RGB"), alpha


def _to_srgb(picture, profile):
    """The same colours in sRGB; a profile that cannot be used is passed over, as viewers do."""
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(space):
            return picture
        opaque = picture.convert("RGB") if picture.mode == "RGBA" else picture
        rgb = ImageCms.profileToProfile(opaque, space, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return picture
    if picture.mode == "RGBA":
        rgb.putalpha(picture.getchannel("A"))
    return rgb
