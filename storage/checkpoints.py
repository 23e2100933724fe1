"""Weights on disk: one file, a sharded folder or a diffusers pipeline folder -> {key: tensor}, and a file written anew.

What a file holds is read from its header first, so a damaged or wrong file is refused before anything is allocated.
Errors are ValueError or FileNotFoundError: the file, what was found, what was expected, what to do.
Needs torch and safetensors alone, and for a GGUF file the package gguf.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from .gguf_files import open_gguf
from .pickles import read_pickle
from .weight_files import WEIGHT_ENDINGS, is_index, models_in, shards_of

# Codes of 8-bit numbers from which on they are infinite or NaN: of the positive ones, and of the negative ones.
_NOT_FINITE_FROM = {"torch.float8_e4m3fn": (0x7F, 0xFF), "torch.float8_e5m2": (0x7C, 0xFC), "torch.float8_e8m0fnu": (0x80, 0xFF)}
# What trainers put into the names of layers that they wrap: FSDP, activation checkpointing, torch.compile, DDP.
_WRAPPED = re.compile(r"(^|\.)(?:(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod|module)\.)+")
MAX_HEADER = 100_000_000  # bytes, the safetensors format's own limit

_DTYPES = {
    name: getattr(torch, attribute)
    for name, attribute in dict(
        F64="float64", F32="float32", F16="float16", BF16="bfloat16", F8_E4M3="float8_e4m3fn", F8_E5M2="float8_e5m2",
        F8_E8M0="float8_e8m0fnu", I64="int64", I32="int32", I16="int16", I8="int8", U8="uint8", U16="uint16",
        U32="uint32", U64="uint64", BOOL="bool", C64="complex64").items()
    if hasattr(torch, attribute)
}


@dataclass(frozen=True)
class Checkpoint:
    """What open_checkpoint found; load() reads the tensors.

    path: what was asked for (with the subfolder). files: the weight files behind it. shapes, dtypes: by key.
    metadata: safetensors metadata of all files. config: the model's config, from the file's own metadata["config"],
    else from the config.json beside it, else None. config_place: "inside" the file, "beside" it in a folder of this model
    alone, or "shared" by a folder of several, one of which it belongs to.
    """

    path: Path
    files: tuple[Path, ...]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    metadata: dict[str, str]
    config: dict | None
    config_place: str
    loaders: tuple[Callable[[], dict[str, torch.Tensor]], ...]

    def load(self) -> dict[str, torch.Tensor]:
        """{key: tensor} on the CPU in the file's own types, mapped into memory where the format allows it."""
        return {key: tensor for load in self.loaders for key, tensor in load().items()}


@dataclass(frozen=True)
class _Part:
    """One weight file."""

    shapes: dict
    dtypes: dict
    metadata: dict
    load: Callable[[], dict[str, torch.Tensor]]


def open_checkpoint(path, subfolder: str | None = None) -> Checkpoint:
    """Look at a checkpoint without reading its weights.

    path: a weight file (safetensors, a torch pickle of tensors, or a text encoder's GGUF file; the content tells, not the
    ending), one shard of several, an .index.json, a folder that holds either, or with `subfolder` a pipeline folder.
    Raises FileNotFoundError for what is not there, ValueError for what is not weights.
    """
    path = Path(path)
    if subfolder is not None:
        if not (path / subfolder).is_dir():
            raise FileNotFoundError(f"{path}: there is no folder {subfolder} in it, expected a diffusers pipeline folder "
                                    f"with {subfolder}/. Choose the pipeline's top folder, or the weight file itself.")
        path = path / subfolder
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder. Check the path, or download it again.")

    source = _weights_in(path) if path.is_dir() else path
    files = _files(source)
    parts = [_without_wrappers(_open_file(file)) for file in files]
    metadata = {key: value for part in parts for key, value in part.metadata.items()}
    checkpoint = Checkpoint(
        path, files,
        {key: shape for part in parts for key, shape in part.shapes.items()},
        {key: dtype for part in parts for key, dtype in part.dtypes.items()},
        metadata, *_config(source, metadata), tuple(part.load for part in parts))
    if twice := sum(len(part.shapes) for part in parts) - len(checkpoint.shapes):
        raise ValueError(f"{source}: {twice} tensors are in two of its files. They are of different downloads: get the folder "
                         "again.")
    if is_index(source.name):
        if lost := _weight_map(source).keys() - checkpoint.shapes.keys():
            raise ValueError(f"{source}: the index names {len(lost)} tensors that are in none of its files, such as "
                             f"{min(lost)}. Index and files are of different downloads: get the folder again.")
    return checkpoint


def _weights_in(folder: Path) -> Path:
    """The weight file, first shard or index of the model in a folder."""
    if (folder / "model_index.json").exists():
        parts = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_dir())) or "none"
        raise ValueError(f"{folder}: this is a whole pipeline folder, expected one model of it. Choose one of its "
                         f"folders: {parts}.")
    names = sorted(p.name for p in folder.iterdir() if p.is_file())

    def listed(index):
        try:
            return _listed(folder / index)
        except ValueError:
            return ()

    models = models_in(names, listed)
    if not models:
        found = ", ".join(names[:4]) or "nothing"
        raise FileNotFoundError(f"{folder}: no weights in this folder (found {found}), expected one of "
                                f"*{', *'.join(WEIGHT_ENDINGS)}, or shards of it. Choose the folder with the weights.")
    best = [model.label for model in models if model.rank == models[0].rank]
    if len(best) > 1:
        raise ValueError(f"{folder}: several models in this folder ({', '.join(best[:6])}), expected one. Choose the "
                         f"file itself, or move the others away.")
    return folder / models[0].entry


def _files(source: Path) -> tuple[Path, ...]:
    """The files that belong together: what an index lists, or a shard's fellows, or the file alone."""
    files = tuple(source.parent / name for name in _listed(source)) if is_index(source.name) else shards_of(source)
    if len(files) > 1 or is_index(source.name):
        if lost := [file.name for file in files if not file.is_file()]:
            raise FileNotFoundError(f"{source}: of {len(files)} files of this model {len(lost)} are missing beside it: "
                                    f"{', '.join(lost[:4])}. Download them into {source.parent}.")
    return files


def _listed(index: Path) -> list[str]:
    """The names of the files that an index lists."""
    names = _weight_map(index).values()
    return sorted(set(names))


def _weight_map(index: Path) -> dict[str, str]:
    """{key of a tensor: name of its file, which lies beside the index}."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        weight_map = content["weight_map"]
        if weight_map and all(Path(name).name == name for name in weight_map.values()):
            return weight_map
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ValueError(f'{index}: no "weight_map" from tensors to files can be read in it, expected the index of a sharded '
                     "model. Get it again.")


def _config(source: Path, metadata: dict) -> tuple[dict | None, str]:
    """The config inside the file, else the one beside it, and its place. One that cannot be read is like none."""
    texts = {"inside": metadata["config"]} if "config" in metadata else {}
    beside = source.parent / "config.json"
    try:
        if beside.is_file():
            texts["shared" if _several(source.parent) else "beside"] = beside.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        pass
    for place, text in texts.items():
        try:
            if isinstance(config := json.loads(text), dict):
                return config, place
        except (ValueError, TypeError, RecursionError):
            pass
    return None, "inside"


def _several(folder: Path) -> bool:
    """Whether a folder holds more than one model: one in several number types, as shards and as a pickle counts once."""
    stems = (model.name.rpartition(".")[0] for model in models_in(path.name for path in folder.iterdir()))
    return len({re.sub(r"(\.(fp16|bf16|fp32|fp8|ema|non_ema))+$", "", stem) for stem in stems}) > 1


def _open_file(path: Path) -> _Part:
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path}: this file is empty, expected weights. The download failed: get it again.")
    if head[4:9] == b"\0\0\0\0{":  # a header shorter than 4 GB, in JSON
        return _open_safetensors(path)
    if head[:2] == b"PK" or (head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")):
        return _open_pickle(path)
    if head.startswith(b"GGUF"):
        return _Part(*open_gguf(path))
    raise ValueError(f"{path}: this is {_kind(head)}, expected safetensors or a torch file of tensors. Get the weights again.")


def _without_wrappers(part: _Part) -> _Part:
    """The same, with a trainer's wrappers taken off the names, unless two names would become one."""
    names = {key: _WRAPPED.sub(r"\1", key) for key in part.shapes}
    if part.shapes.keys() == {*names.values()} or len({*names.values()}) < len(names):
        return part
    return _Part({names[key]: shape for key, shape in part.shapes.items()},
                 {names[key]: dtype for key, dtype in part.dtypes.items()}, part.metadata,
                 lambda: {names[key]: tensor for key, tensor in part.load().items()})


def _kind(head: bytes) -> str:
    """Words for the beginning of a file that holds no weights."""
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, a few lines in place of the weights (run git lfs pull)"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "a web page, saved in place of the download"
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # not just a letter that the end of `head` cuts
            return "no known format"
        text = head[:error.start].decode()
    if all(c.isprintable() or c.isspace() for c in text):
        return f"a text file (it begins {text.strip()[:30]!r})"
    return "no known format"


def _open_safetensors(path: Path) -> _Part:
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > min(MAX_HEADER, size - 8):
            raise ValueError(f"{path}: its header should have {length:,} bytes and the file has {size:,}, expected a whole "
                             f"safetensors file. It is cut short or something else: get it again.")
        text = file.read(length)
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", None) or {}
        names = {key: entry["dtype"] for key, entry in header.items()}
        shapes = {key: tuple(entry["shape"]) for key, entry in header.items()}
        places = {key: tuple(entry["data_offsets"]) for key, entry in header.items()}
        numbers = [n for key in header for n in shapes[key] + places[key]]
        sound = (all(type(n) is int and 0 <= n < 2**63 for n in numbers)
                 and all(len(place) == 2 for place in places.values()) and all(len(shape) <= 64 for shape in shapes.values())
                 and all(isinstance(word, str) for word in [*names.values(), *metadata, *metadata.values()]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise ValueError(f"{path}: its header cannot be read, expected a safetensors file. The file is damaged: get it "
                         f"again.")
    if not shapes:
        raise ValueError(f"{path}: no tensors in this file, expected weights. Choose another file.")
    if strange := [key for key, name in names.items() if name not in _DTYPES]:
        raise ValueError(f"{path}: {strange[0]} has the type {names[strange[0]]}, which this torch {torch.__version__} does "
                         f"not know. Choose another version of the file, or a newer torch.")

    dtypes, end = {key: _DTYPES[name] for key, name in names.items()}, 0
    for key, (start, stop) in sorted(places.items(), key=lambda item: item[1]):
        size_named = math.prod(shapes[key]) * dtypes[key].itemsize
        if start != end or stop - start != size_named or math.prod(n or 1 for n in shapes[key]) >= 2**63:
            raise ValueError(f"{path}: its header says that {key}, {names[key]} {list(shapes[key])}, is bytes {start:,} to "
                             f"{stop:,}, expected {size_named:,} bytes from {end:,} on. The file is damaged: get it again.")
        end = stop
    end += 8 + length
    if end != size:
        raise ValueError(f"{path}: {size:,} bytes, expected {end:,} after its header. The file is "
                         f"{'cut short' if size < end else 'damaged'}: get it again.")

    def load():
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path}: a damaged safetensors file ({error}). Get it again.") from None

    return _Part(shapes, dtypes, metadata, load)


def _open_pickle(path: Path) -> _Part:
    tensors = read_pickle(path)
    return _Part({key: tuple(t.shape) for key, t in tensors.items()}, {key: t.dtype for key, t in tensors.items()}, {},
                 lambda: dict(tensors))


def check_finite(tensors: Mapping[str, torch.Tensor], filename: str) -> None:
    """Raise ValueError, naming the first such tensor, if any holds NaN or infinity: the result would be a black picture.

    Scales of quantised weights are looked at as well, integers and tensors on the meta device are not. Each tensor is read
    once, in its own type and without a copy: of a mapped file that is what later reading finds in the page cache.
    """
    for key, tensor in tensors.items():
        if not is_finite(tensor):
            raise ValueError(f"{filename}: {key} holds NaN or infinite numbers, and so would every result. The file is damaged, "
                             "or its training failed: get it again, or take an earlier checkpoint.")


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds no NaN and no infinity; integers never do."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return True
    if tensor.itemsize == 1:  # no reductions of these in torch
        positive, negative = _NOT_FINITE_FROM.get(str(tensor.dtype), (0x80, 0x100))
        return tensor.view(torch.int8).max().item() < positive and tensor.view(torch.uint8).max().item() < negative
    # A sum, the fastest of all, is finite only if every number is; where finite numbers overflow it, the extremes decide.
    return bool(tensor.sum().isfinite()) or all(bool(end.isfinite()) for end in tensor.aminmax())


def write_checkpoint(path, layout: dict[str, tuple[torch.dtype, tuple[int, ...]]],
                     tensors: Iterable[tuple[str, torch.Tensor]], metadata: dict[str, str]) -> Path:
    """Write a safetensors file tensor by tensor, so that a model never has to be in memory as a whole.

    layout: {key: (dtype, shape)} of all that will come. tensors: (key, tensor) in any order, each key once. The file gets
    its name when it is complete; one that is broken off, by an error or an interrupt, leaves nothing. Raises
    FileExistsError when there is such a file already, ValueError when the tensors are not those of the layout.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path}: there is such a file already, and nothing is overwritten. Choose another name, or move "
                              "it away.")
    header, offsets, end = {"__metadata__": metadata}, {}, 0
    names = {dtype: name for name, dtype in _DTYPES.items()}
    # Wide types first, so that every tensor begins at a multiple of its numbers' size: mapped files need that.
    for key, (dtype, shape) in sorted(layout.items(), key=lambda item: -item[1][0].itemsize):
        offsets[key], end = end, end + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [offsets[key], end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    part, missing = path.with_name(path.name + ".part"), set(layout)
    try:
        with open(part, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for key, tensor in tensors:
                if key not in missing or (tensor.dtype, tuple(tensor.shape)) != (layout[key][0], tuple(layout[key][1])):
                    raise ValueError(f"{key}, {tensor.dtype} {tuple(tensor.shape)}, was not announced, or has come before")
                missing.remove(key)
                file.seek(8 + len(text) + offsets[key])
                file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        if missing:
            raise ValueError(f"{len(missing)} tensors did not come, such as {min(missing)}")
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def write_converted(path, parts: Iterable[dict[str, torch.Tensor]], convert, metadata, progress=lambda parts: parts) -> Path:
    """Write what `convert` makes of a model, a part at a time: what one part becomes is all that is in memory.

    parts: {key: tensor} of the blocks, one after the other, mapped from a file as a rule. convert: a part -> ({key: tensor},
    notes); it is called twice, first with tensors on the meta device. metadata: all notes as one dictionary -> the file's
    metadata. progress: goes over a list of parts as tqdm does, and may raise to break off. Errors as for write_checkpoint.
    """
    parts, layout, notes = list(parts), {}, {}
    for part in parts:
        made, more = convert({key: torch.empty_like(tensor, device="meta") for key, tensor in part.items()})
        layout |= {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in made.items()}
        notes |= more
    return write_checkpoint(path, layout, (item for part in progress(parts) for item in convert(part)[0].items()),
                            metadata(notes))
