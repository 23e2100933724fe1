"""A folder that is a Hugging Face Space: the pack with its embedded models, a header, and the packages of this environment."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from pathlib import Path

from ..headless import installation

ROOT = Path(__file__).resolve().parents[1]
TORCH_FOR_CPUS = "https://download.pytorch.org/whl/cpu"
# Of PyTorch with CUDA, which a CPU has no use for.
LEFT_OUT = ("nvidia-", "cuda-", "triton")


def write(folder: Path) -> list[str]:
    """Write the Space; returns the names at its top. Raises ValueError for a folder with something in it."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; name a folder that is not there yet.")
    patterns = [line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    for source in (path for pattern in patterns for path in ROOT.glob(pattern)):
        if source.is_dir():
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / source.name)
    for name in ("README.md", "app.py"):
        shutil.copy2(ROOT / "space" / name, folder / name)
    (folder / "requirements.txt").write_text("\n".join([f"--extra-index-url {TORCH_FOR_CPUS}", *pins(), ""]), "utf-8")
    return sorted(path.name for path in folder.iterdir())


def pins() -> list[str]:
    """name==version of all that the page and its ComfyUI need, as this environment has them."""
    from packaging.requirements import Requirement

    comfyui = installation.host()
    todo = [Requirement(line) for file in installation.wanted(comfyui, ("host", "app")).values()
            for line in (line.partition("#")[0].strip() for line in file.read_text("utf-8").splitlines()) if line]
    found = {}
    while todo:
        wanted = todo.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        known = found.setdefault(name, set())
        new = {*wanted.extras, ""} - known
        if name.startswith(LEFT_OUT) or not new or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            if not known:
                found.pop(name)
            continue
        known |= new
        for line in importlib.metadata.requires(name) or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in new):
                todo.append(Requirement(re.sub(r";.*", "", line)))
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in sorted(found)]
