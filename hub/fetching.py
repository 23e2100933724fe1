"""Fetching from the Hub: which files of a repository the loaders need, and where they go.

A repository is fetched into models/.hub, where no loader looks. What arrived is looked at there, by its tensors, and moved to
its place when it is what it should be: one file under its repository's name, or a folder where a model has several.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi

from ..storage.weight_files import Model, models_in, shards_of
from .catalogue import Entry
from .contents import LORAS, Contents, identify
from .remote import File, HubError, download, files_of, is_same

PARTS = {"transformer": "diffusion_models", "vae": "vae", "text_encoder": "text_encoders", "controlnet": "controlnet"}
KINDS = (*PARTS.values(), LORAS)
PIPELINE = "model_index.json"
TOKENIZERS = ("tokenizer.model", "spiece.model", "tokenizer.json")
STAGE = ".hub"
GENERIC = ("diffusion_pytorch_model", "pytorch_lora_weights", "adapter_model", "model", "mp_rank_00_model_states")
NUMBER_TYPES = ("bf16", "fp16", "")  # of the same weights, the first that is there


@dataclass(frozen=True)
class Plan:
    """What is fetched. name: what it is called here. parts: {part: its weights' first file}, "" for what is no pipeline's.
    whole: whether all goes into a folder of models/diffusers."""

    repository: str
    commit: str
    name: str
    files: tuple[File, ...]
    parts: dict[str, str]
    whole: bool
    models: Path

    @property
    def stage(self) -> Path:
        return self.models / STAGE / self.commit[:12] / self.repository.rpartition("/")[2]

    def places(self, file: File) -> list[Path]:
        """Where a file may end, all that are possible before it is known what it is."""
        if self.whole:
            return [self.models / "diffusers" / self.name / file.path]
        name, part = PurePosixPath(file.path), self.part_of(file)
        kinds = [PARTS[part]] if part in PARTS else KINDS
        single = [f"{self.name}{name.suffix}"] if file.path in self.parts.values() and not self.sharded else []
        return [self.models / kind / within for kind in kinds for within in (*single, f"{self.name}/{name.name}")]

    def part_of(self, file: File) -> str:
        return file.path.partition("/")[0] if "" not in self.parts else ""

    @property
    def sharded(self) -> bool:
        return any(len(shards_of(Path(entry))) > 1 or entry.endswith(".json") for entry in self.parts.values())


def plan(api: HfApi, repository: str, revision: str | None, models: Path, only=(), file: str | None = None,
         name: str | None = None) -> Plan:
    """Choose what is needed of a repository. only: names of PARTS, of a pipeline. file: one of several models in it.
    Raises HubError where that is not clear, and for a name that is no file's."""
    commit, listing = files_of(api, repository, revision)
    by_path = {one.path: one for one in listing}
    own = repository.rpartition("/")[2]
    own = own.removesuffix("_diffusers").removesuffix("-diffusers")
    if name and (Path(name).name != name or name.startswith(".")):
        raise HubError(f"--name {name}: a name without folders and without a dot before it is wanted, such as {own}.")
    if file is None and PIPELINE in by_path:
        found = {part: best for part in PARTS if (best := _best(by_path, part)) and (not only or part in only)}
        if lost := [part for part in only if part not in found]:
            raise HubError(f"{repository} has no {', '.join(lost)}; it has "
                           f"{', '.join(p for p in PARTS if _best(by_path, p))}.")
        if not found:
            raise HubError(f"{repository}: a pipeline without {', '.join(PARTS)}: nothing in it is for this pack.")
        entries = {part: _within(part, model.entry) for part, model in found.items()}
        whole = "text_encoder" in found or any(model.parts != 1 for model in found.values())  # a tokenizer is a second file
        chosen = [path for part, model in found.items() for path in _files(by_path, part, model)]
        if whole:
            chosen = [PIPELINE, *chosen]
            chosen += [f"tokenizer/{t}" for t in TOKENIZERS if "text_encoder" in found and f"tokenizer/{t}" in by_path]
    else:
        folder, model, several = _one(by_path, repository, file)
        if only:
            raise HubError(f"{repository} is no pipeline, and has no parts to choose: leave --only away.")
        entries, whole = {"": _within(folder, model.entry)}, False
        chosen = _files(by_path, folder, model)
        if several:
            stem = model.name.rpartition(".")[0]
            own = "_".join([own, *PurePosixPath(folder).parts]) if stem in GENERIC else stem
    return Plan(repository, commit, name or own, tuple(by_path[path] for path in dict.fromkeys(chosen)), entries, whole,
                Path(models))


def _within(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _folders(by_path) -> dict[str, list[str]]:
    folders: dict[str, list[str]] = {}
    for path in by_path:
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append(name)
    return folders


def _number_type(model: Model) -> str:
    return model.name.partition(".")[2].rpartition(".")[0]


def _best(by_path, folder: str) -> Model | None:
    """The model in a folder, in the number type to take; None without one."""
    whole = [model for model in models_in(_folders(by_path).get(folder, ())) if model.whole and model.parts]
    order = {kind: rank for rank, kind in enumerate(NUMBER_TYPES)}
    return min(whole, key=lambda model: (model.rank[1], order.get(_number_type(model), len(order))), default=None)


def _files(by_path, folder: str, model: Model) -> list[str]:
    """The files of a model: its weights, the index of its shards, its config."""
    stem, kind, ending = model.name.partition(".")[0], _number_type(model), model.name.rpartition(".")[2]
    names = [path.name for path in shards_of(Path(model.entry))]
    if model.parts > 1:
        names.append(f"{stem}.{ending}.index.{kind}.json" if kind else f"{stem}.{ending}.index.json")
    paths = [_within(folder, name) for name in (*names, "config.json")]
    return [path for path in paths if path in by_path]


def _one(by_path, repository: str, file: str | None) -> tuple[str, Model, bool]:
    """(folder, the model, whether the repository has others) of a repository that is no pipeline."""
    folders = {folder: models_in(names) for folder, names in _folders(by_path).items()}
    every = {_within(folder, model.entry): (folder, model) for folder, models in folders.items() for model in models
             if model.parts}
    if file:
        if file not in every:
            found = ", ".join(sorted(every)) or "none"
            raise HubError(f"{repository} has no weights {file}. It has: {found}.")
        return *every[file], len(every) > 1
    # One model in several number types, or beside its pickle, counts once.
    kinds = {(folder, model.name.partition(".")[0]) for folder, model in every.values()}
    if not kinds:
        raise HubError(f"{repository}: there are no weights in it.")
    if len(kinds) > 1:
        sizes = {path: sum(by_path[one].size for one in _files(by_path, *every[path])) for path in sorted(every)}
        lines = [f"  --file {path}  {size(count)}" for path, count in sizes.items()]
        raise HubError(f"{repository} holds several models. Choose one of them:\n" + "\n".join(lines))
    folder = next(iter(kinds))[0]
    return folder, _best(by_path, folder), False


def size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB" if count >= 1e4 else f"{count} bytes"


def there(plan: Plan, file: File) -> Path | None:
    """Where the file lies already; None if it does not. Raises HubError where other weights have its place."""
    taken = [place for place in plan.places(file) if place.is_file()]
    right = next((place for place in taken if is_same(place, file)), None)
    if taken and not right and file.path in plan.parts.values():
        raise HubError(f"{taken[0]} is there already and is another file than {plan.repository}'s. Move it away, or fetch "
                       "this one under another name: --name NAME.")
    return right


def missing(plan: Plan) -> list[File]:
    """The files that are still to come. A single file needs none beside it once it has its place."""
    left = [file for file in plan.files if there(plan, file) is None]
    if plan.whole:
        return left
    weights = [file for file in left if PurePosixPath(file.path).suffix != ".json"]
    return [file for file in left if any(plan.part_of(file) == plan.part_of(other) for other in weights)]


def check_space(plan: Plan, files: list[File]) -> None:
    """Raise HubError when the disk cannot hold what is still to come."""
    targets = [plan.stage / file.path for file in files]
    here = [path for target in targets for path in (target, target.with_name(target.name + ".part")) if path.exists()]
    have = sum(path.stat().st_size for path in here)
    needed, free = sum(file.size for file in files) - have, shutil.disk_usage(_existing(plan.models)).free
    if needed > free:
        raise HubError(f"{size(needed)} are still to come, and {plan.models} has room for {size(free)}. Make room, fetch "
                       "less (--only), or name a folder on another disk (--to).")


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def fetch(api: HfApi, plan: Plan, files: list[File], promised: Entry | None = None) -> list[tuple[Path, Contents]]:
    """Download, look at what came, and put it where the loaders look; returns (place, what it is) of each model.

    promised: what the catalogue says that it is. Raises HubError, and leaves what is not that outside the loaders' sight.
    """
    parts = [part for part in plan.parts if plan.whole or any(plan.part_of(file) == part for file in files)]
    for file in plan.files:
        if file in files:
            download(api, plan.repository, plan.commit, file, plan.stage)
        elif (plan.whole or plan.part_of(file) in parts) and (place := there(plan, file)):
            _link(place, plan.stage / file.path)  # what was there already is looked at with the rest
    found = {part: _checked(plan, part, promised) for part in parts}
    if plan.whole:
        folder = _place_whole(plan)
        places = [(folder, contents) for contents in found.values()]
    else:
        places = [(_place(plan, part, contents), contents) for part, contents in found.items()]
    shutil.rmtree(plan.models / STAGE / plan.commit[:12])
    if not any((plan.models / STAGE).iterdir()):
        (plan.models / STAGE).rmdir()
    return places


def _link(place: Path, staged: Path) -> None:
    staged.parent.mkdir(parents=True, exist_ok=True)
    staged.unlink(missing_ok=True)
    try:
        os.link(place, staged)
    except OSError:  # a file system without links
        shutil.copyfile(place, staged)


def _checked(plan: Plan, part: str, promised: Entry | None) -> Contents:
    """What a part is, by its tensors. Raises HubError unless it is what it should be."""
    entry = plan.parts[part]
    kept = f"It is kept out of the loaders' sight, in {plan.stage}: look at it, or delete it."
    try:
        contents = identify(plan.stage / entry, f"{plan.repository.rpartition('/')[2]}/{entry}")
    except (ValueError, OSError) as error:
        raise HubError(f"{error} {kept}") from None
    if part and contents.kind != PARTS[part]:
        raise HubError(f"{entry} of {plan.repository} should be a {part}, and is {contents.variant}. {kept}")
    if promised and contents.family not in ("", promised.family):
        raise HubError(f"{entry} of {plan.repository} should be {promised.name}, and is {contents.variant}. {kept}")
    if promised and promised.title and contents.kind == "diffusion_models" and contents.variant != promised.title:
        raise HubError(f"{entry} of {plan.repository} should be {promised.title}, and is {contents.variant}. {kept}")
    return contents


def _place_whole(plan: Plan) -> Path:
    folder = plan.models / "diffusers" / plan.name
    for file in sorted(plan.files, key=lambda file: file.path == PIPELINE):  # last what makes it a pipeline
        _move(plan.stage / file.path, folder / file.path)
    return folder


def _place(plan: Plan, part: str, contents: Contents) -> Path:
    """One file, or a folder with shards, or with the config.json without which the file would be taken for something else."""
    entry, home = plan.parts[part], plan.models / contents.kind
    target = home / f"{plan.name}{PurePosixPath(entry).suffix}"
    if not plan.sharded and _is_same_alone(plan.stage / entry, target.name, contents):
        _move(plan.stage / entry, target)
        return target
    folder = home / plan.name
    for file in plan.files:
        if plan.part_of(file) == part:
            _move(plan.stage / file.path, folder / PurePosixPath(file.path).name)
    return folder if plan.sharded else folder / PurePosixPath(entry).name


def _is_same_alone(path: Path, name: str, contents: Contents) -> bool:
    """Whether a file is the same thing to the loaders under another name and without the config.json beside it."""
    try:
        alone = identify(path, name, config=False)
    except ValueError:
        return False
    return (alone.params, alone.variant) == (contents.params, contents.variant)


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
