"""Which files are a model: the one answer for the loaders' lists, for a folder that is opened, and for a shard.

It goes by names, so that listing a folder opens nothing:

    model.safetensors                                     a file
    model-00001-of-00002.safetensors, ...                 shards, whole when every number is there
    model.fp16-00001-of-00002.safetensors, ...            of a variant
    model.safetensors.index.json, ....index.fp16.json     an index, which says nothing that numbered shards do not
    transformer_blocks, unquantized_layers.safetensors    the two halves of a model by Nunchaku
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

WEIGHT_ENDINGS = (".safetensors", ".sft", ".pth", ".pt", ".bin", ".ckpt")
_SAFETENSORS = (".safetensors", ".sft")
_SHARD = re.compile(rf"(.+-)(\d{{5}})(-of-)(\d{{5}})((?:\.[^.]+)*(?:{'|'.join(map(re.escape, WEIGHT_ENDINGS))}))")
_HALVES = ("transformer_blocks.safetensors", "unquantized_layers.safetensors")
_INDEX = re.compile(r"(.+)\.index(\.[^.]+)?\.json")


@dataclass(frozen=True)
class Model:
    """A model in a folder.

    name: of its file, or of the file that its shards are the parts of. entry: the file to open, a shard or an index for
    those that have several. parts: how many files it has, 0 when only its index could tell. whole: whether all are there.
    """

    name: str
    entry: str
    parts: int = 1
    whole: bool = True

    @property
    def label(self) -> str:
        """A name for lists that says of a sharded model what it is."""
        return self.name if self.parts == 1 else f"{self.name} ({self.parts} shards)" if self.parts else self.entry

    @property
    def rank(self) -> tuple:
        """Lower is better: whole ones, safetensors before pickles, a plain name before a variant's."""
        return not self.whole, not self.name.endswith(_SAFETENSORS), self.name.count(".")


def is_index(name: str) -> bool:
    """Whether a file of this name lists the shards of a model."""
    return _INDEX.fullmatch(name) is not None


def is_shard(name: str) -> bool:
    """Whether a file of this name is one of several that are a model together."""
    return name in _HALVES or _SHARD.fullmatch(name) is not None


def shards_of(path: Path) -> tuple[Path, ...]:
    """A shard and its fellows in order, whether they are there or not; any other file alone."""
    if path.name in _HALVES:
        return tuple(path.with_name(name) for name in _HALVES)
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return (path,)
    before, _, of, count, ending = match.groups()
    return tuple(path.with_name(f"{before}{i:05d}{of}{count}{ending}") for i in range(1, int(count) + 1)) or (path,)


def models_in(names: Iterable[str], listed: Callable[[str], Collection[str]] = lambda index: ()) -> list[Model]:
    """The models among the files of one folder, the best first (Model.rank).

    names: of the files. listed: what an index lists, for one whose shards have other names than the usual ones; without
    it such a model counts as not whole.
    """
    names, found, parts = set(names), [], set()
    for name in names:
        if match := _SHARD.fullmatch(name):
            fellows = [file.name for file in shards_of(Path(name))]
            found.append(Model(match[1][:-1] + match[5], fellows[0], len(fellows), names.issuperset(fellows)))
    if halves := names.intersection(_HALVES):
        found.append(Model(_HALVES[0], _HALVES[0], 2, len(halves) == 2))
    numbered = {model.name for model in found}
    for name in names:
        match = _INDEX.fullmatch(name)
        if match and (whole := _with_variant(match[1], match[2] or "")) not in numbered:
            files = set(listed(name))
            complete = bool(files) and files <= names
            parts |= files if complete else set()
            found.append(Model(whole, name, len(files), complete))
    found += [Model(name, name) for name in names - parts if name.endswith(WEIGHT_ENDINGS) and not is_shard(name)]
    best = {}
    for model in sorted(found, key=lambda model: (model.rank, model.parts, model.name)):
        best.setdefault(model.name, model)  # a file and its own shards are the same model
    return list(best.values())


def _with_variant(name, variant):
    """("model.safetensors", ".fp16") -> "model.fp16.safetensors" """
    stem, dot, ending = name.rpartition(".")
    return stem + variant + dot + ending if dot else name + variant
