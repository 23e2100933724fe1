"""The files of a data set's folder."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from .contents import kind_of, natural


class Tree:
    """The files of a folder: hidden ones left out, links followed once, names relative to it with "/"."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = _walk(folder)
        self.names = frozenset(self.files)
        self.folders = frozenset(str(parent) for file in self.files for parent in PurePosixPath(file).parents) - {"."}
        self.media = [file for file in self.files if kind_of(file)]

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder, here or where ".." leads."""
        return name in self.names or (self.folder / name).exists()

    def is_folder(self, name: str) -> bool:
        return name in self.folders or (self.folder / name).is_dir()

    def read(self, name: str) -> str:
        return read_text(self.folder / name)


def _walk(folder: Path) -> list[str]:
    """Files below a folder. A folder is entered once, under its own name rather than a link's; a picture or clip that is there
    itself does not come again as a link to it."""
    files, seen, folders, links = [], set(), [], []

    def enter(place: str, name: str):
        if (real := os.path.realpath(place)) in seen:
            return
        seen.add(real)
        for entry in os.scandir(place):
            if not entry.name.startswith("."):
                below = f"{name}/{entry.name}" if name else entry.name
                if entry.is_dir():
                    folders.append((entry.path, below)) if entry.is_symlink() else enter(entry.path, below)
                elif entry.is_symlink():
                    links.append((entry.path, below))
                else:
                    seen.add(os.path.realpath(entry.path))
                    files.append(below)

    enter(str(folder), "")
    while folders:
        folders.sort(key=lambda item: natural(item[1]))
        enter(*folders.pop(0))
    files += [name for place, name in links if not (kind_of(name) and os.path.realpath(place) in seen)]
    return sorted(files, key=natural)


def read_text(path: Path) -> str:
    """A text in UTF-8, or in UTF-16 as Windows saves it. Raises ValueError."""
    content = path.read_bytes()
    try:
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None
