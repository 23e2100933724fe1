"""Publishing on the Hub: from a file, or a training run's folder, to a folder as it will stand there, and one commit of it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import safetensors.torch
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ..storage.checkpoints import write_checkpoint
from ..training.adapter_layouts import Change, to_diffusers
from . import card
from .catalogue import Entry, Licence, embedded, entries, licences, of_base
from .contents import LORAS, Contents, identify
from .remote import HubError, explained

SAMPLES = "samples"
MODEL_FILE, LORA_FILE = "diffusion_pytorch_model.safetensors", "pytorch_lora_weights.safetensors"
# Settings of a run that its card tells: no paths, which are nobody's business.
TOLD = ("train.kind", "train.steps", "train.lr", "train.optimizer", "train.schedule", "train.seed", "train.ema", "lora.rank",
        "lora.alpha", "lora.targets", "lora.dora", "data.resolution", "data.buckets", "data.frames", "data.batch_size",
        "train.accumulation", "data.caption_dropout", "model.dtype", "model.quantize")


def prepare(source: Path, repository: str, folder: Path, base: str | None = None, licence: str | None = None,
            prompt: str | None = None) -> card.Published:
    """Write the folder that will be the repository; returns what its card says.

    source: a file, or a run's folder. base: the model it was made of, where that is not written in it: a repository, or a name
    as the catalogue has it. licence: a key of the catalogue's licences, or the Hub's name of one, for a base not known there.
    prompt: words that prompts should have. Raises HubError, ValueError, OSError before anything is written.
    """
    source, run = Path(source), {}
    if source.is_dir() and (source / "config.yaml").is_file():
        source, run = _result(source)
    known = of_base(base) if base else None
    contents = identify(source, family=known.family if known else "")
    _check_publishable(source, contents)
    entry, base_name = _base(source, contents, run, base)
    terms = _licence(source, contents, entry, base_name, licence)
    about = card.Published(repository, contents, terms, _name(source, contents), entry, base_name, prompt,
                           _samples(source.parent, run), _settings(run))
    page = card.write(about)

    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise HubError(f"{folder}: there is something in this folder. Name one that is empty, or new.")
    folder.mkdir(parents=True, exist_ok=True)
    if contents.kind == LORAS:
        write_lora(source, folder / about.file)
    else:
        shutil.copyfile(contents.checkpoint.files[0], folder / about.file)
        if not contents.quantised:
            (folder / "config.json").write_text(json.dumps(diffusers_config(contents), indent=2) + "\n", "utf-8")
    for file in about.samples:
        (folder / SAMPLES).mkdir(exist_ok=True)
        shutil.copyfile(source.parent / file, folder / file)
    page.save(folder / "README.md")
    return about


def upload(api: HfApi, folder: Path, repository: str, message: str, tag: str | None = None, private: bool = False) -> str:
    """Publish a folder in one commit; returns the commit. tag: of the version, new. Raises HubError, and nothing was changed."""
    with explained(api, repository):
        api.create_repo(repository, private=private, exist_ok=True)
        info = api.model_info(repository)
        if private and not info.private:
            raise HubError(f"{repository} is there already and is public. Make it private in its settings on the Hub, or "
                           "take another name.")
        refs = api.list_repo_refs(repository)
        if there := [ref for ref in refs.tags if ref.name == tag]:
            raise HubError(f"{repository} has a tag {tag} already, of commit {there[0].target_commit[:12]}. Tags stay what "
                           "they are: take another one.")
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        names = {path.relative_to(folder).as_posix(): path for path in files}
        old = [s.rfilename for s in info.siblings if s.rfilename.startswith(f"{SAMPLES}/") and s.rfilename not in names]
        operations = [CommitOperationAdd(name, path) for name, path in names.items()]
        operations += [CommitOperationDelete(name) for name in old]
        commit = api.create_commit(repository, operations, commit_message=message, parent_commit=info.sha).oid
        if tag:
            api.create_tag(repository, tag=tag, revision=commit)
    return commit


# --- what is published ---


def _result(folder: Path) -> tuple[Path, dict]:
    """(the result's file, the settings) of a run."""
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        name = settings["output"]["name"]
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError):
        raise HubError(f"{folder / 'config.yaml'} is no run's: there is no output.name in it. Name the file of weights "
                       "itself.") from None
    file = folder / f"{name}.safetensors"
    if not file.is_file():
        raise HubError(f"{folder}: this run has no result {file.name} yet. Let it end, or publish a checkpoint's file from "
                       f"{folder / 'checkpoints'}.")
    return file, settings


def _check_publishable(source: Path, contents: Contents) -> None:
    if contents.kind not in (LORAS, "diffusion_models", "controlnet") or (contents.family, contents.kind) == (
            "cogvideox", "controlnet"):
        raise HubError(f"{source.name} is a {contents.variant}, which nobody trains here: publish LoRAs, ControlNets and "
                       "transformers.")
    shapes = contents.checkpoint.shapes
    whole = contents.kind == LORAS or any(f"{name}.weight" in shapes for name in ("patch_embed.proj", "patch_embedding"))
    flat = [key for key, shape in shapes.items() if key.endswith("ff.conv_inverted.weight") and len(shape) != 4]
    if contents.layout != "diffusers" or not whole or flat and not contents.quantised:
        raise HubError(f"{source.name} has not diffusers' names and shapes, in which it is published. Convert it first:\n"
                       f"  python run.py convert {source} --output NEW.safetensors")
    if len(contents.checkpoint.files) > 1 or contents.checkpoint.files[0].suffix != ".safetensors":
        raise HubError(f"{source.name} is not one safetensors file. Make it one first:\n"
                       f"  python run.py convert {source} --output NEW.safetensors")


def _base(source: Path, contents: Contents, run: dict, given: str | None) -> tuple[Entry | None, str | None]:
    """(the catalogue's entry of the base, its repository). Raises HubError for one that it cannot be."""
    metadata = contents.checkpoint.metadata
    said = given or run.get("model", {}).get("variant") or metadata.get("ss_base_model")
    if said is None and contents.kind == "diffusion_models":
        said = contents.variant
    entry = of_base(said) if said else None
    if entry and (entry.family != contents.family or contents.kind == LORAS and not _same_size(contents, entry)):
        raise HubError(f"{source.name} is of {contents.variant or 'another family'}, and its base should be {entry.name}: "
                       "that cannot be. Give the right one with --base.")
    if entry:
        return entry, entry.repository
    return None, given if given and re.fullmatch(r"[\w.-]+/[\w.-]+", given) else None


def _same_size(contents: Contents, entry: Entry) -> bool:
    """Whether a LoRA's layers are of the base's size; those of 1.6B and 4.8B differ in nothing but their number."""
    def sizes(title):
        return {"1.6B" if word == "4.8B" else word for word in title.split()}

    return bool(sizes(contents.variant.split()[-1]) & sizes(entry.title))


def _licence(source: Path, contents: Contents, entry: Entry | None, base: str | None, given: str | None) -> Licence:
    """The base's licence, which what is made of it comes under too. Raises HubError where there is none."""
    if entry:
        if given and given != entry.licence:
            raise HubError(f"{entry.name} comes under the licence `{entry.licence}`, and what is made of it too: leave "
                           "--licence away.")
        return licences()[entry.licence]
    known = ", ".join(licences())
    if given is None and base is None and contents.variant in embedded():
        return licences()["apache"]
    if given is None:
        what = f"the licence of {base} is not known here" if base else "nothing tells which model it was made of"
        raise HubError(f"{source.name}: {what}, and nothing is published without a licence. Give --base REPOSITORY, such as "
                       f"{entries()[0].repository}; and --licence ({known}, or a name of the Hub's such as apache-2.0) for "
                       "one that `hub list` does not have.")
    if given in licences():
        return licences()[given]
    if given == "other" or not re.fullmatch(r"[a-z0-9][a-z0-9.-]+", given):
        raise HubError(f"--licence {given}: it is one of {known}, or a name of the Hub's such as apache-2.0, mit, cc-by-4.0.")
    return Licence({"license": given}, f"{given}.")


def _name(source: Path, contents: Contents) -> str:
    if contents.kind == LORAS:
        return LORA_FILE
    return source.name if contents.quantised else MODEL_FILE


def _samples(folder: Path, run: dict) -> dict[str, list[str]]:
    """The pictures or clips that a run drew last, with their prompts: a sheet of all pictures, or a file a clip."""
    prompts = run.get("validation", {}).get("prompts") or []
    sheets = sorted((folder / SAMPLES).glob("step-*.png"))
    if not sheets or not isinstance(prompts, list):
        return {}
    clips = {f"{SAMPLES}/{path.name}": [prompts[int(path.stem.split("-")[2])]]
             for path in sorted(sheets[-1].parent.glob(f"{sheets[-1].stem}-*.mp4"))}
    return clips or {f"{SAMPLES}/{sheets[-1].name}": prompts}


def _settings(run: dict) -> dict[str, str]:
    found = {}
    for key in TOLD:
        section, name = key.split(".")
        value = run.get(section, {}).get(name)
        if value is not None and value is not False and value != "none":
            found[key] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return found


# --- in diffusers' layout ---


def write_lora(source: Path, target: Path) -> None:
    """A LoRA as diffusers takes it. It refuses tensors called alpha: their scale goes into B."""
    tensors = safetensors.torch.load_file(source)
    if not any(key.endswith(".alpha") for key in tensors):
        shutil.copyfile(source, target)
        return
    if any(key.endswith(".lora_magnitude_vector") for key in tensors):
        raise HubError(f"{source.name} is a DoRA with tensors called alpha, which diffusers does not read. Train it here, "
                       "or write it without them.")
    changes = {}
    for key in tensors:
        if key.endswith(".lora_A.weight"):
            stem = key.removesuffix(".lora_A.weight")
            A, B = tensors[key].flatten(1), tensors[f"{stem}.lora_B.weight"].flatten(1)
            alpha = tensors.get(f"{stem}.alpha")
            changes[stem.removeprefix("transformer.")] = Change(A, B, 1.0 if alpha is None else float(alpha) / A.shape[0])
    written, metadata = to_diffusers(changes)
    # By our own writer, which gives the same bytes each time: the Hub is not sent again what it has.
    write_checkpoint(target, {key: (t.dtype, tuple(t.shape)) for key, t in written.items()}, written.items(), metadata)


def diffusers_config(contents: Contents) -> dict:
    """config.json as diffusers reads it."""
    config = contents.params.to_diffusers()
    if contents.kind == "controlnet":
        stated = contents.checkpoint.config or {}
        config |= {"_class_name": card.CLASSES["controlnet"], **{key: stated[key] for key in ("wiring",) if key in stated}}
    return config
