"""Latents and encoded texts on disk: safetensors files whose names are made of all that went into them.

A changed file or setting gives another key, so nothing stale is ever read; what nobody asks for any more can be listed.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from . import contents
from .buckets import Placed

VERSION = 1  # of the entries: part of every key, higher when the same parts would give other tensors


def key(parts: dict) -> str:
    """The name of what is made of `parts`: content, transform and model, all as plain JSON values. Raises TypeError."""
    text = json.dumps({"version": VERSION, **parts}, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def transform(placed: Placed, fps: float | None = None, window: str = "head", clip: int = 0, pad_last: bool = False) -> dict:
    """How media.load makes a tensor of a file, as parts of a key. The numbers of a picture's window say nothing and stay out."""
    parts = {"bucket": list(placed.bucket), "resize": list(placed.resize), "crop": [placed.top, placed.left]}
    return parts if placed.bucket.frames == 1 else parts | {"fps": fps, "window": window, "clip": clip, "pad_last": pad_last}


class Cache:
    """A folder of entries. Several processes may read and write it at once: of two that make the same entry the later one stays,
    and both are the same."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        return _header(self.path(key)) is not None

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors of an entry, None where there is none, or one that was not written to its end: make it anew."""
        try:
            return safetensors.torch.load_file(self.path(key))
        except (OSError, safetensors.SafetensorError):
            return None

    def put(self, key: str, tensors: dict[str, torch.Tensor], about: dict) -> None:
        """Write an entry. about: what it was made of and by which model, for the index. The file is whole or not there."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{key}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")
        try:
            safetensors.torch.save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part,
                                        {"about": json.dumps(about)})
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def index(self) -> Iterator[tuple[str, dict]]:
        """(key, about) of every whole entry."""
        for path in sorted(self.folder.glob("??/*.safetensors")):
            if (header := _header(path)) is not None:
                yield path.stem, header

    def stale(self, wanted: set[str]) -> list[Path]:
        """The files that are not among the wanted entries, broken ones and remains of broken-off writes included."""
        return [path for path in sorted(self.folder.glob("??/*")) if path.suffix in (".safetensors", ".part")
                and not (path.stem in wanted and _header(path) is not None)]


def _header(path: Path) -> dict | None:
    """What stands in an entry about it, None for one that is not there or not whole."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get("about", "{}"))
    except (OSError, ValueError, safetensors.SafetensorError):
        return None


class Fingerprints:
    """sha256 of files, computed again only when size or time of change differ; kept in a JSON file between runs.

    A file that changed within two seconds of being read is read again: its time may be the same after a further change.
    """

    def __init__(self, path):
        self.path, self.changed = Path(path), False
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none yet, or broken off: all are read again
            found = {}
        self.known = found if isinstance(found, dict) else {}

    def sha256(self, folder, file: str) -> str:
        """sha256 of what a row names; see contents.sha256_of. Raises FileNotFoundError."""
        place, stamp = f"{Path(folder).absolute().as_posix()}/{file}", contents.stamp_of(folder, file)
        if stamp and (known := self.known.get(place)) and known[:-1] == stamp:
            return known[-1]
        found = contents.sha256_of(folder, file)
        if stamp and stamp == contents.stamp_of(folder, file) and contents.settled(stamp):
            self.known[place], self.changed = [*stamp, found], True
        return found

    def save(self) -> None:
        """Write what was learned, if anything."""
        if self.changed:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
            part.write_text(json.dumps(self.known), encoding="utf-8")
            os.replace(part, self.path)
            self.changed = False
