"""Results kept as they come, a line each, so that a run that ended in whatever way goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path


class Journal:
    """{key: JSON value} on disk, written by appending. A last line that is half there, after a kill, is dropped.

    Of several values of a key the last one counts. To be used in a `with`.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.values = {}
        whole = 0
        if self.path.is_file():
            for line in self.path.read_bytes().splitlines(keepends=True):
                try:
                    key, value = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                self.values[key] = value
                whole += len(line)
        self._whole = whole

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab")
        self._file.truncate(self._whole)
        return self

    def __exit__(self, *_):
        self._file.close()

    def get(self, key: str):
        return self.values.get(key)

    def put(self, key: str, value) -> None:
        self.values[key] = value
        self._file.write(json.dumps([key, value]).encode() + b"\n")
        self._file.flush()  # out of this process: a kill loses nothing, only a power cut can
