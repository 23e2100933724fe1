"""Where the bytes of a row lie: a file, a folder of pictures, a member of a tar, or a cell of a `datasets` set.

In a manifest these are named "a/b.png", "a/clip" (a folder), "shards/0.tar::b.png" and "set::train/12/image"; a set from the
Hub is "hf:owner/name::train/12/image", with "@revision" after the name where one is pinned.
"""

from __future__ import annotations

import functools
import hashlib
import re
import tarfile
import time
from pathlib import Path

# HEIC and JPEG XL are what some cameras write and Pillow does not read: such files are rows, and their error says so.
PICTURES = frozenset(".png .jpg .jpeg .jfif .webp .bmp .tif .tiff .avif .jxl .heic .heif".split())
VIDEOS = frozenset(".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .m2ts .wmv .flv .gif .ogv .3gp".split())
HUB = "hf:"
_DIGITS = re.compile("([0-9]+)")


def kind_of(name: str) -> str | None:
    """"image" or "video" by the ending of a file's name, None for other files."""
    ending = Path(name).suffix.lower()
    return "image" if ending in PICTURES else "video" if ending in VIDEOS else None


def locate(folder, file: str) -> Path | bytes:
    """The path of a file or of a folder of pictures, or the bytes of a member. Raises FileNotFoundError."""
    path, member = _parts(folder, file)
    if not member:
        if not path.exists():
            raise FileNotFoundError(f"{path}: there is no such file. It was moved or deleted: read the data set again.")
        return path
    if file.startswith(HUB) or path.is_dir():
        return _cell(file.partition("::")[0] if file.startswith(HUB) else str(path), member)
    offset, size = _member(path, member)
    with open(path, "rb") as tar:
        tar.seek(offset)
        return tar.read(size)


def _parts(folder, file: str) -> tuple[Path, str]:
    """(path, member or ""). A file whose own name has "::" in it is no member."""
    whole = Path(folder) / file
    if "::" not in file or whole.exists():
        return whole, ""
    place, _, member = file.partition("::")
    return Path(folder) / place, member


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder that stands for a clip, in the order of their names, numbers by value."""
    return sorted((p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")), key=natural)


def natural(path) -> tuple:
    """What to sort names by: 2.png before 10.png."""
    name = str(path)
    return [int(part) if at % 2 else part for at, part in enumerate(_DIGITS.split(name))], name


def sha256_of(folder, file: str) -> str:
    """sha256 of the content, in hex; of a folder of pictures, over names and contents."""
    found = locate(folder, file)
    if isinstance(found, bytes):
        return hashlib.sha256(found).hexdigest()
    if found.is_dir():
        parts = "".join(f"{path.name}\0{sha256_of(found, path.name)}\n" for path in pictures_in(found))
        return hashlib.sha256(parts.encode(errors="surrogateescape")).hexdigest()
    with open(found, "rb") as content:
        digest = hashlib.sha256()
        while block := content.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def stamp_of(folder, file: str) -> list[int] | None:
    """[size in bytes, time of change in ns] of the file behind a row, of the whole tar for a member; None where there is none.

    For a folder of pictures: sum of the sizes, the newest time and the number of pictures.
    """
    path, member = _parts(folder, file)
    if member and path.is_dir():  # a saved set: the library writes its state anew with every change
        split = member.partition("/")[0]
        path = next((state for state in (path / split / "state.json", path / "state.json") if state.is_file()), path)
    if path.is_dir():
        if not (stats := [p.stat() for p in pictures_in(path)]):
            return None
        return [sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats), len(stats)]
    if not path.is_file():
        return None
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def settled(stamp: list[int]) -> bool:
    """Whether a file's last change is so long ago that a further one has another time."""
    return time.time_ns() - stamp[1] > 2_000_000_000


def members(path) -> dict[str, tuple[int, int]]:
    """{name: (offset, size)} of the files in a tar, in its order. Raises FileNotFoundError, ValueError."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file, expected a tar.")
    stat = path.stat()
    return _members(str(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _members(path: str, size: int, changed: int) -> dict[str, tuple[int, int]]:
    found = {}
    try:
        with tarfile.open(path, "r:") as tar:  # without compression: only then can members be read from their places
            for member in tar:
                if member.isfile():
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError(f"{member.name} is cut short")
                    found[member.name] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ValueError(f"{path}: no tar that can be read ({error}), expected one without compression. Unpack it, or get it "
                         "again.") from None
    return found


def _member(path: Path, name: str) -> tuple[int, int]:
    if (place := members(path).get(name)) is None:
        raise FileNotFoundError(f"{path}: there is no {name} in this tar. It has changed: read the data set again.")
    return place


def _cell(place: str, member: str) -> Path | bytes:
    split, index, column = member.split("/", 2)
    value = dataset(place)[split][int(index)][column]
    if value["bytes"] is not None:
        return value["bytes"]
    path = Path(value["path"])
    if not path.is_file():
        raise FileNotFoundError(f"{place}: row {index} of {split} names {path}, which is not there. Get the set again.")
    return path


@functools.lru_cache(maxsize=4)
def dataset(place: str) -> dict:
    """{split: set} of a saved set's folder or of "hf:NAME@REVISION", with pictures and clips as {bytes, path}.

    Raises ValueError where the library cannot load it.
    """
    import datasets  # slow to import, and only these sets need it

    try:
        if place.startswith(HUB):
            name, _, revision = place.removeprefix(HUB).partition("@")
            found = datasets.load_dataset(name, revision=revision or None)
        else:
            found = datasets.load_from_disk(place)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{place}: datasets cannot load this: {error}") from error
    splits = found if isinstance(found, dict) else {str(found.split or "train"): found}
    return {name: _undecoded(split) for name, split in splits.items()}


def _undecoded(split):
    import datasets

    for column, feature in split.features.items():
        if isinstance(feature, (datasets.Image, datasets.Video)):
            split = split.cast_column(column, type(feature)(decode=False))
    return split
