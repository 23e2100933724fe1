"""A Hugging Face Space on free hardware with the embedded models: a folder with what of this repository the page needs, the header
that a Space's README.md has, and a requirements.txt of locked versions. Written anew each time, so that there is no second copy."""

import re
import shutil
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ..headless.hosts import HOSTS

ROOT = Path(__file__).resolve().parents[1]
KEPT = ("LICENSE", "__init__.py", "run.py", "app", "commands", "configs", "cogvideo_core", "evaluation", "headless", "host", "kernels",
        "locks", "models", "nodes", "sana_core", "space", "storage", "web", "workflows")
LISTS = ("torch", "host", "app")


def write(folder, comfyui):
    """Write the Space into a new or empty folder. comfyui: a ComfyUI's folder, one of headless.hosts, for what it requires.

    Raises FileExistsError, ValueError.
    """
    host = next((host for host in HOSTS.values() if host.folder.exists() and host.folder.samefile(comfyui)), None)
    if host is None:
        raise FileExistsError(f"A Space takes the ComfyUI that run.py fetches, whose versions are locked, not {comfyui}; leave "
                              "COMFYUI_PATH away.")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; name a folder that is new or empty.")
    wanted = [line for file in (comfyui / "requirements.txt", *(ROOT / f"requirements-{name}.txt" for name in LISTS))
              for line in file.read_text("utf-8").splitlines()]
    lines = locked(wanted, host.lock.read_text("utf-8").splitlines())
    folder.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    shutil.move(folder / "space" / "README.md", folder / "README.md")
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n", "utf-8")


def locked(wanted, lock):
    """The lines of a lock for these requirements and for what they require, as far as it is installed here. Sorted.

    Raises ValueError for one that is not in the lock.
    """
    pins = {}
    for line in lock:
        if match := re.match(r"[A-Za-z0-9._-]+", line):
            pins.setdefault(canonicalize_name(match[0]), []).append(line)
    todo = [Requirement(line) for text in wanted if (line := text.partition("#")[0].strip())]
    seen, lines = set(), set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        extras = {"", *requirement.extras}
        if (name, *sorted(extras)) in seen or requirement.marker and not requirement.marker.evaluate():
            continue
        seen.add((name, *sorted(extras)))
        if name not in pins:
            raise ValueError(f"{name} is not in the lock")
        lines |= set(pins[name])
        for text in metadata.requires(name) or ():
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                needed.marker = None
                todo.append(needed)
    return sorted(lines)
