"""Where a run goes on from: folders `step-000500` with all that the next step depends on. Random numbers are not part of it, as
they are made from the numbers of seed, step and row.

A folder has its name only when it is whole; which one is the latest is found by reading.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

STATE, ABOUT = "state.pt", "about.json"
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Found:
    """path: the folder. about: step, seconds, loss (validation, or None), versions."""

    path: Path
    about: dict

    @property
    def step(self) -> int:
        return self.about["step"]

    def state(self) -> dict:
        """weights, optimizer and average, on the CPU."""
        return torch.load(self.path / STATE, map_location="cpu", weights_only=True)


def save(folder: Path, state: dict, about: dict, results=lambda folder: None) -> Path:
    """Write a checkpoint. about: JSON values, with `step`. results(folder): writes further files into it. A crash leaves what
    was there before; a checkpoint of the same step is replaced."""
    path = folder / f"step-{about['step']:06}"
    part = folder / f".{path.name}.{os.getpid()}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with open(part / STATE, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        results(part)
        (part / ABOUT).write_text(json.dumps(about | {"versions": versions()}, indent=1), encoding="utf-8")
        if path.exists():
            shutil.rmtree(path)
        os.replace(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return path


def everyone(folder: Path) -> list[Found]:
    """The whole checkpoints in a folder, oldest first."""
    found = []
    for path in folder.glob("step-*"):
        if not (match := _NAME.fullmatch(path.name)) or not (path / STATE).is_file():
            continue
        try:
            about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(about, dict) and about.get("step") == int(match[1]):
            found.append(Found(path, about))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def latest(folder: Path, log=print) -> tuple[Found, dict] | None:
    """(the newest checkpoint that can be read, its state), None when there is none."""
    for found in reversed(everyone(folder)):
        try:
            return found, found.state()
        except Exception as error:  # torch raises many kinds for a file that is damaged
            log(f"{found.path}: cannot be read ({type(error).__name__}), the one before it is taken")
    return None


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` and the one with the lowest validation loss, and what broken-off writes left."""
    found = everyone(folder)
    kept = {c.path for c in found[-keep:]} | ({best(found).path} if best(found) else set())
    for checkpoint in found:
        if checkpoint.path not in kept:
            shutil.rmtree(checkpoint.path)
    for part in folder.glob(".step-*.part"):
        if not _alive(int(part.name.split(".")[-2])):
            shutil.rmtree(part, ignore_errors=True)


def best(found: list[Found]) -> Found | None:
    """Of the lowest validation loss, None when it was never measured."""
    return min((c for c in found if c.about.get("loss") is not None), key=lambda c: c.about["loss"], default=None)


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__}


def _alive(process: int) -> bool:
    if process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


class History:
    """What was measured at which step: JSON lines, one a step, and cut back when a run goes on from an earlier step."""

    def __init__(self, path: Path, step: int):
        self.path, self.lines = path, []
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:  # broken off
                    continue
                if entry["step"] <= step and step:
                    self.lines.append(entry)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(entry) + "\n" for entry in self.lines), encoding="utf-8")
        os.replace(part, path)
        self.file = open(path, "a", encoding="utf-8", buffering=1)

    def add(self, **entry) -> None:
        self.lines.append(entry)
        self.file.write(json.dumps(entry) + "\n")

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of every entry that has this."""
        return [(entry["step"], entry[name]) for entry in self.lines if name in entry]
