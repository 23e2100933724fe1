"""Which files and folders the loaders offer, and where a chosen name lies."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..storage.weight_files import is_shard, models_in, shards_of

# Kind of model (a folder name of ComfyUI) -> its place in a diffusers pipeline.
SUBFOLDERS = {"diffusion_models": "transformer", "vae": "vae", "text_encoders": "text_encoder", "controlnet": "controlnet"}


def choices(kind: str) -> list[str]:
    """Names for a loader's list: files, sharded models and diffusers pipelines, the latter from models/diffusers too.

    A sharded model has its folder's name; where that would not tell, its own name and the number of its shards.
    """
    files = [name for name in folder_paths.get_filename_list(kind) if not is_shard(Path(name).name)]
    if kind == "text_encoders":  # ComfyUI's list leaves these out
        files += sorted({(folder / file).relative_to(root).as_posix() for root, folder, _, names in _walk(kind)
                         for file in names if file.endswith(".gguf")})
    return files + sorted(_more_than_a_file(kind))


def model_path(kind: str, name: str) -> Path:
    """Where the model called `name` lies: a file (one shard of several, too) or a folder. Raises FileNotFoundError."""
    place = _more_than_a_file(kind).get(name)
    if place is not None:
        return place
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
    files = sorted(path.rglob("*")) if path.is_dir() else shards_of(path)
    files = [p for p in files if p.is_file()]
    return tuple((p.relative_to(path.parent).as_posix(), p.stat().st_mtime_ns, p.stat().st_size) for p in files)


def is_pipeline(path: Path) -> bool:
    """Whether this is a folder of a whole diffusers pipeline."""
    return (path / "model_index.json").is_file()


def _walk(kind):
    for root in folder_paths.get_folder_paths(kind):
        for folder, folders, files in os.walk(root, followlinks=True):
            folders[:] = [f for f in folders if not f.startswith(".")]
            yield Path(root), Path(folder), folders, files


def _more_than_a_file(kind) -> dict[str, Path]:
    """{name: folder, or shard or index} of the models that ComfyUI's list of files does not have. No file is opened."""
    found, part = {}, SUBFOLDERS[kind]
    for place in (kind, "diffusers"):
        for root, folder, folders, files in _walk(place):
            name = folder.relative_to(root).as_posix()
            if "model_index.json" in files:
                if folder != root and part in folders:
                    found.setdefault(name, folder)
                folders.clear()  # its parts are reached through it
                continue
            models = models_in(files)
            sharded = [model for model in models if model.parts != 1] if place == kind else []
            if folder != root and (sharded or (models and place != kind and folder.name == part)):
                found.setdefault(name, folder)
            if sharded and (folder == root or len(models) > 1):  # the folder alone does not say which
                for model in sharded:
                    found.setdefault((folder / model.label).relative_to(root).as_posix(), folder / model.entry)
    return found


def _tokenizers() -> dict[str, Path]:
    return {(folder / file).relative_to(root).as_posix(): folder / file
            for root, folder, _, files in _walk("text_encoders")
            for file in files if file.endswith(".model") or (file.startswith("tokenizer") and file.endswith(".json")
                                                             and file != "tokenizer_config.json")}
