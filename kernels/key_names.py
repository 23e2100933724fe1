"""Where in a file a model's tensors stand: behind what savers and trainers put before the names of its own."""

from __future__ import annotations

# What a checkpoint of several models (ComfyUI's Save Checkpoint, SAT, Stable Diffusion's) puts before each of them.
DIFFUSION_MODEL = ("model.diffusion_model.",)
AUTOENCODER = ("first_stage_model.", "vae.")
TEXT_ENCODER = ("text_encoders.", "cond_stage_model.", "conditioner.")


def unwrapped(mapping: dict, anchors: tuple[str, ...], part: tuple[str, ...] = ()) -> dict:
    """Names without what stands before them; values are passed through, tensors and shapes alike.

    part: the model's place in a checkpoint of several: where it is found, only what is there is taken. anchors: names that
    a model of this kind has, one in each layout: what stands before one goes, if every key begins with it.
    """
    for place in part:
        if any(key.startswith(place) for key in mapping):
            mapping = without(mapping, place)
            break
    for anchor in anchors:
        for key in mapping:
            before = key.removesuffix(anchor)
            if before != key and before.endswith(".") and (
                    before.endswith(part or "\0") or all(other.startswith(before) for other in mapping)):
                return without(mapping, before)
    return mapping


def without(mapping: dict, prefix: str) -> dict:
    """What begins with `prefix`, shortened by it."""
    return {key[len(prefix):]: value for key, value in mapping.items() if key.startswith(prefix)}


def prefix_of(keys, anchor: str) -> str | None:
    """What stands before `anchor` in the first key that ends with it, "" or with a dot at its end; None without such a key."""
    return next((key[: -len(anchor)] for key in keys if key == anchor or key.endswith("." + anchor)), None)


def several_models(keys) -> str:
    """A sentence for errors on what a checkpoint of several models holds; "" for the file of one."""
    kinds = {"a diffusion model": DIFFUSION_MODEL, "an autoencoder": AUTOENCODER, "a text encoder": TEXT_ENCODER}
    found = [name for name, places in kinds.items() if any(key.startswith(places) for key in keys)]
    return f" It is a checkpoint as Save Checkpoint writes one, and holds {' and '.join(found)}." if found else ""
