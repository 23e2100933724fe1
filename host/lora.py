"""LoRAs on the pack's models: the stock loaders' keys, and a loader for all others."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import comfy.lora
import comfy.model_base
import folder_paths

from ..storage import check_finite, open_checkpoint
from .lora_keys import DOWN, UP, read


class ReadsDiffusersLoras(comfy.model_base.HiDream):
    """BaseModel, for which the stock LoRA loaders also know diffusers' and LyCORIS' names of layers.

    They look names up by the model's class and have no entry for one of a pack. HiDream's entry is what is needed
    here (`transformer.` or `lycoris_` before the layer's own name), and nothing else in any host looks at that class;
    of it nothing but the name is taken over.
    """

    __init__ = comfy.model_base.BaseModel.__init__
    encode_adm = comfy.model_base.BaseModel.encode_adm
    extra_conds = comfy.model_base.BaseModel.extra_conds


def apply_lora(path, model, clip=None, strength_model: float = 1.0, strength_clip: float = 1.0, alpha: float = 0.0):
    """(MODEL, CLIP or None) with the LoRA in the file at `path` on them.

    alpha: for files that do not state one; 0 is the rank (scale 1). Raises ValueError, before anything is changed, for
    a file that is no LoRA or none of this model, whose matrices have other sizes, or whose numbers are not finite.
    """
    path = Path(path)
    checkpoint = open_checkpoint(path)
    weights = {"model": _layers(model, "diffusion_model."), "text": _layers(clip.patcher, "", ".transformer.") if clip else {}}
    found = read(checkpoint.load(), weights["model"], weights["text"], checkpoint.metadata, alpha)
    if not found.model and not found.text:
        keys = ", ".join(found.unmatched[:3])
        raise ValueError(f"{path.name}: nothing in this file fits the model: it has names such as {keys}. It is the LoRA of "
                         "another model, or no LoRA.")
    for kind, layers in (("model", found.model), ("text", found.text)):
        _check_sizes(path.name, layers, weights[kind])
        check_finite({f"{name}.{part}": t for name, parts in layers.items() for part, t in parts.items()}, path.name)
    if found.unmatched:
        logging.warning("%s: %d of %d tensors have no place in this model%s: %s%s", path.name, len(found.unmatched),
                        len(checkpoint.shapes), "" if clip else " (no CLIP was connected)",
                        ", ".join(found.unmatched[:6]), " ..." if len(found.unmatched) > 6 else "")
    logging.info("%s: LoRA for %d layers of the model and %d of the text encoder", path.name, len(found.model), len(found.text))
    model = _patched(model, found.model, weights["model"], strength_model)
    return model, clip and _patched(clip, found.text, weights["text"], strength_clip)


def lora_path(name: str) -> Path:
    """Where the LoRA called `name` lies. Raises FileNotFoundError."""
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise FileNotFoundError(f"{name}: no such LoRA in {', '.join(folder_paths.get_folder_paths('loras'))}. Put it there, "
                                "or choose one of the list.")
    return Path(path)


def _layers(patcher, prefix: str, marker: str = "") -> dict[str, tuple[str, tuple]]:
    """{name of a layer: (key of its weight in the host, its shape)}. marker: what the name stands behind, if anything."""
    out = {}
    # No state dict: there a quantised weight has the shape of its packed numbers.
    for key, tensor in patcher.model.named_parameters(remove_duplicate=False):
        if key.startswith(prefix) and key.endswith(".weight") and marker in key:
            name = key[len(prefix):] if not marker else key.split(marker, 1)[1]
            out[name.removesuffix(".weight")] = key, tuple(tensor.shape)
    return out


def _check_sizes(filename, layers, weights):
    for name, parts in layers.items():
        if UP not in parts or DOWN not in parts:
            if (UP in parts) != (DOWN in parts):
                raise ValueError(f"{filename}: {name} has only one of its two matrices. The file is incomplete: get it again.")
            continue
        up, down, shape = parts[UP], parts[DOWN], weights[name][1]
        rows, columns = shape[0], math.prod(shape[1:])
        if (min(up.ndim, down.ndim) < 2 or (up.shape[0], math.prod(down.shape[1:])) != (rows, columns)
                or up.shape[1] != down.shape[0] or not down.shape[0]):
            raise ValueError(f"{filename}: its matrices for {name} are {tuple(up.shape)} and {tuple(down.shape)}, the layer "
                             f"has {rows} x {columns}: this is a LoRA of another size of the model.")


def _patched(patcher, layers, weights, strength):
    """A clone of the patcher with the layers' adapters on it."""
    tensors = {f"{name}.{part}": tensor for name, parts in layers.items() for part, tensor in parts.items()}
    patches = comfy.lora.load_lora(tensors, {name: weights[name][0] for name in layers}, log_missing=False)
    out = patcher.clone()
    out.add_patches(patches, strength)
    return out
