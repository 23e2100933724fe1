"""Which files and folders the loaders offer, and where a chosen name lies."""

from __future__ import annotations

import os
import re
from pathlib import Path

import folder_paths

# Kind of model (a folder name of ComfyUI) -> its place in a diffusers pipeline.
SUBFOLDERS = {"diffusion_models": "transformer", "vae": "vae", "text_encoders": "text_encoder", "controlnet": "controlnet"}
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")


def choices(kind: str) -> list[str]:
    """Names for a loader's list: files, sharded folders and diffusers pipelines, the latter from models/diffusers too."""
    files = [name for name in folder_paths.get_filename_list(kind) if not _SHARD.search(name)]
    return files + sorted(_folders(kind))


def model_path(kind: str, name: str) -> Path:
    """Where the model called `name` lies: a file or a folder. Raises FileNotFoundError."""
    folder = _folders(kind).get(name)
    if folder is not None:
        return folder
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        where = ", ".join(folder_paths.get_folder_paths(kind))
        raise FileNotFoundError(f"{name}: no such model in {where}. Put it there, or choose one of the list.")
    return Path(path)


def tokenizer_choices() -> list[str]:
    """"auto" and the tokenizer files in the text encoder folders."""
    return ["auto"] + sorted(_tokenizers())


def tokenizer_path(name: str) -> Path | None:
    """Where a tokenizer lies; None for "auto". Raises FileNotFoundError."""
    if name == "auto":
        return None
    path = _tokenizers().get(name)
    if path is None:
        raise FileNotFoundError(f"{name}: no such tokenizer in the text encoder folders. Put tokenizer.model or "
                                "tokenizer.json there, or choose auto.")
    return path


def fingerprint(path: Path | None) -> tuple:
    """A value that changes when a file, or a file of a folder, does. ComfyUI saves it in pictures: no whole paths."""
    if path is None:
        return ()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return tuple((p.relative_to(path.parent).as_posix(), p.stat().st_mtime_ns, p.stat().st_size) for p in files)


def is_pipeline(path: Path) -> bool:
    """Whether this is a folder of a whole diffusers pipeline."""
    return (path / "model_index.json").is_file()


def _walk(kind):
    for root in folder_paths.get_folder_paths(kind):
        for folder, folders, files in os.walk(root, followlinks=True):
            folders[:] = [f for f in folders if not f.startswith(".")]
            yield Path(root), Path(folder), folders, files


def _folders(kind) -> dict[str, Path]:
    found = {}
    for place in (kind, "diffusers"):
        for root, folder, folders, files in _walk(place):
            pipeline = "model_index.json" in files
            if pipeline:
                pipeline = SUBFOLDERS[kind] in folders
                folders.clear()  # its parts are reached through it
            if folder != root and (pipeline or (place == kind and any(f.endswith(".index.json") for f in files))):
                found.setdefault(folder.relative_to(root).as_posix(), folder)
    return found


def _tokenizers() -> dict[str, Path]:
    return {(folder / file).relative_to(root).as_posix(): folder / file
            for root, folder, _, files in _walk("text_encoders")
            for file in files if file.endswith(".model") or (file.startswith("tokenizer") and file.endswith(".json")
                                                             and file != "tokenizer_config.json")}
