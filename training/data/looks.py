"""Looking at a file once, from its first frame to its last: what checks.py judges, in numbers that can be kept."""

from __future__ import annotations

import io
import statistics
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import av
from PIL import Image, ImageOps, UnidentifiedImageError

from .contents import locate, pictures_in, sha256_of
from .pixels import Pixels

UNEVEN = 0.2   # difference of frame distances, as a share of the usual one: container time stamps are rounded
SHORT_BY = 0.1  # share of the stated duration that may be missing at the end
HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics in ITU-T H.273
TURNED = {3: 180, 4: 180, 5: 90, 6: 90, 7: 90, 8: 90}  # EXIF orientation: degrees; 2, 4, 5 and 7 are mirrored too


@dataclass
class Look:
    """A file's figures. `problem` is the code of what kept it from being read to its end, `said` the library's words for it."""

    sha256: str = ""
    problem: str | None = None
    said: str = ""
    width: int = 0   # as shown
    height: int = 0
    frames: int = 0  # decoded
    header_frames: int | None = None
    fps: float | None = None
    duration: float | None = None  # seconds
    distances: list[float] = field(default_factory=list)  # seconds between frames: shortest, usual, longest
    rotation: int = 0  # degrees; 1 for a mirrored picture
    interlaced: bool = False
    alpha: bool = False  # transparent in places
    bits: int = 8    # a channel
    hdr: str = ""
    pixels: dict = field(default_factory=dict)  # see Pixels.figures

    def to_json(self) -> dict:
        return asdict(self)

    @property
    def variable(self) -> bool:
        return bool(self.distances) and self.distances[2] - self.distances[0] > UNEVEN * self.distances[1]


def look_at(folder: Path, file: str, kind: str) -> Look:
    """Read a row's picture, clip or folder of pictures, named as in a manifest in `folder`. kind: "image" or "video".

    Never raises for what is in the file.
    """
    look = Look()
    try:
        source = locate(folder, file)
    except FileNotFoundError as error:
        look.problem, look.said = "file.missing", str(error).partition(": ")[2] or str(error)
        return look
    except (OSError, ValueError) as error:
        look.problem, look.said = "file.unreadable", str(error)
        return look
    pictures = isinstance(source, Path) and source.is_dir()
    if not pictures and not (len(source) if isinstance(source, bytes) else source.stat().st_size):
        look.problem, look.said = "file.empty", "0 bytes"
        return look
    look.sha256 = sha256_of(folder, file)
    if pictures:
        return look_at_pictures(source, look)
    pixels = Pixels()
    try:
        if kind == "image":
            pixels.add(read_picture(opened(source), look))
        else:
            for _, frame in read_clip(opened(source), look):
                pixels.add(frame)
    except (OSError, ValueError, SyntaxError, av.FFmpegError, Image.DecompressionBombError) as error:
        look.problem, look.said = look.problem or "file.unreadable", look.said or getattr(error, "strerror", None) or str(error)
    look.pixels = pixels.figures()
    return look


def opened(source: Path | bytes):
    """What Pillow and PyAV open."""
    return io.BytesIO(source) if isinstance(source, bytes) else source


def look_at_pictures(folder: Path, look: Look) -> Look:
    """A folder of pictures as a clip: it has no time."""
    pixels = Pixels()
    for file in pictures_in(folder):
        one = Look()
        try:
            pixels.add(read_picture(file, one))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            look.problem, look.said = one.problem or "file.unreadable", f"{file.name}: {one.said or error}"
            break
        if look.frames and (one.width, one.height) != (look.width, look.height):
            look.problem = "file.unreadable"
            look.said = f"{file.name} is {one.width} x {one.height}, those before it {look.width} x {look.height}"
            break
        look.frames, look.width, look.height = look.frames + 1, one.width, one.height
        look.alpha, look.bits, look.rotation = look.alpha or one.alpha, max(look.bits, one.bits), one.rotation
    if not look.frames and not look.problem:
        look.problem, look.said = "file.empty", "no picture in the folder"
    look.pixels = pixels.figures()
    return look


def read_picture(source, look: Look) -> Image.Image:
    """The picture in RGB as it is shown, over white; its figures go to `look`. Raises what Pillow does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            picture = Image.open(source)
            bits = bits_of(picture)
            picture.load()
        except UnidentifiedImageError:
            look.said = "it is no picture in a format that Pillow knows"
            raise
        except (OSError, SyntaxError) as error:
            if "truncated" in str(error) or "premature" in str(error).lower():
                look.problem = "file.truncated"
            look.said = str(error)
            raise
    look.frames, look.bits = 1, bits
    if (orientation := picture.getexif().get(0x0112, 1)) != 1:
        look.rotation = TURNED.get(orientation, 1)
        picture = ImageOps.exif_transpose(picture)
    look.width, look.height = picture.size
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        picture = picture.convert("F").point(lambda value: value / 257).convert("L")  # convert("RGB") would clip
    if picture.has_transparency_data:
        picture = over_white(picture.convert("RGBA"), look)
    return picture.convert("RGB")


def over_white(picture: Image.Image, look: Look) -> Image.Image:
    """An RGBA picture in RGB. Only one that is not opaque everywhere counts as transparent."""
    look.alpha |= picture.getchannel("A").getextrema()[0] < 255
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def bits_of(picture: Image.Image) -> int:
    """Bits a channel in the file. Pillow reads 16-bit RGB as 8-bit, so its mode does not tell."""
    if picture.format == "PNG":
        position = picture.fp.tell()
        picture.fp.seek(24)
        bits = picture.fp.read(1)[0]
        picture.fp.seek(position)
        return bits
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(258, (8,)))
    return 16 if picture.mode.startswith("I;16") else 32 if picture.mode in ("I", "F") else 8


def read_clip(source, look: Look) -> Iterator[tuple[float | None, Image.Image]]:
    """(seconds, picture in RGB as it is shown) of every frame; when the last one has come, the figures are in `look`. Raises
    what PyAV does."""
    with av.open(str(source) if isinstance(source, Path) else source) as container:
        if not container.streams.video:
            kinds = ", ".join(sorted({stream.type for stream in container.streams}))
            look.problem = "file.no_video" if kinds else "file.unreadable"
            look.said = f"there is only {kinds or 'a header'} in it"
            return
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        look.header_frames = stream.frames or None
        look.hdr = HDR.get(getattr(stream.codec_context, "color_trc", None), "")
        look.rotation = 0
        times, corrupt = [], False
        try:
            for packet in container.demux(stream):
                corrupt |= packet.is_corrupt
                for frame in packet.decode():
                    times.append(frame.time)
                    yield frame.time, shown(frame, look)
        except av.FFmpegError as error:
            look.problem, look.said = ("file.truncated" if times or corrupt else "file.unreadable"), error.strerror
        set_times(look, [time for time in times if time is not None])
        look.frames = len(times)
        stated = stated_duration(container, stream)
        usual = look.distances[1] if look.distances else 0
        if not times:
            look.problem, look.said = look.problem or "file.unreadable", look.said or "no frame can be decoded"
        elif corrupt:
            look.problem, look.said = "file.truncated", look.said or "its last packet is cut off"
        elif stated and look.duration and stated - look.duration > max(SHORT_BY * stated, 2 * usual):
            look.problem = look.problem or "file.truncated"
            look.said = look.said or f"{look.duration:.2f} s can be decoded of the {stated:.2f} s that the header gives"


def shown(frame, look: Look) -> Image.Image:
    """A frame of a video as a picture in RGB, turned as it says; figures to `look`."""
    components = frame.format.components
    look.bits = max(look.bits, max(component.bits for component in components))
    look.interlaced |= bool(getattr(frame, "interlaced_frame", False))
    look.rotation = frame.rotation % 360
    if any(component.is_alpha for component in components):
        picture = over_white(Image.fromarray(frame.to_ndarray(format="rgba")), look)
    else:
        picture = frame.to_image()
    if look.rotation:
        picture = picture.rotate(look.rotation, expand=True)
    look.width, look.height = picture.size
    return picture


def set_times(look: Look, times: list[float]) -> None:
    distances = [after - before for before, after in zip(times, times[1:])]
    if not distances or times[-1] <= times[0]:
        return
    usual = statistics.median(distances)
    look.distances = [round(value, 6) for value in (min(distances), usual, max(distances))]
    look.fps = round(len(distances) / (times[-1] - times[0]), 4)
    look.duration = round(times[-1] - times[0] + usual, 6)


def stated_duration(container, stream) -> float | None:
    """Seconds of the video as its header gives them; None where it does not, or where it is made of the frame count."""
    if container.format.name == "avi":
        return None
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if tag := stream.metadata.get("DURATION"):  # Matroska: hours:minutes:seconds
        hours, minutes, seconds = tag.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    return container.duration / 1e6 if container.duration and len(container.streams) == 1 else None


def some_frames(source: Path | bytes, kind: str, frames: int, count: int) -> list[Image.Image]:
    """Up to `count` frames from all over a row that has `frames`, in RGB as shown. Raises OSError and ValueError."""
    count = max(1, min(count, frames))
    wanted = sorted({round((number + 0.5) * frames / count - 0.5) for number in range(count)})
    if kind == "image":
        return [read_picture(opened(source), Look())]
    if isinstance(source, Path) and source.is_dir():
        files = pictures_in(source)
        return [read_picture(files[number], Look()) for number in wanted]
    found = []
    try:
        for number, (_, frame) in enumerate(read_clip(opened(source), Look())):
            if number in wanted:
                found.append(frame)
            if number == wanted[-1]:
                break
    except av.FFmpegError as error:
        raise ValueError(f"it cannot be decoded: {error.strerror}") from error
    if not found:
        raise ValueError("no frame of it can be decoded")
    return found
