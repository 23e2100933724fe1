"""LoRAs on the pack's models: the stock loaders' keys, and a loader for all others."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import comfy.model_base
import folder_paths
import torch

from ..storage.checkpoints import check_finite, open_checkpoint
from .lora_adapters import ADAPTERS, Made, make_patches
from .lora_alpha import peft_configs
from .lora_keys import DOWN, NOBODY, USER, WHOLE, is_for_text, read
from .lora_strength import TOO_STRONG, relative_change


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
    """(MODEL, CLIP or None) with the LoRA in the file at `path` on them. The log tells what was changed and what was not.

    alpha: for files that do not state one, nor an adapter_config.json beside them; 0 is the rank (scale 1). Raises
    ValueError, before anything is changed, for a file of which nothing acts, whose numbers are not finite, and for one of
    another size of the model.
    """
    path = Path(path)
    checkpoint = open_checkpoint(path)
    sides = [_Side("the model", model, model, _layers(model, "diffusion_model."), strength_model)]
    if clip is not None:
        layers = _layers(clip.patcher, "", ".transformer.")
        sides.append(_Side("the text encoder", clip, clip.patcher, layers, strength_clip))
    found = read(checkpoint.load(), sides[0].keys, sides[1].keys if clip is not None else (),
                 peft_configs(path, checkpoint.metadata), alpha)
    for side, layers in zip(sides, (found.model, found.text)):
        check_finite({f"{name}.{part}": t for name, parts in layers.items() for part, t in parts.items()}, path.name)
        side.layers, side.made = layers, make_patches(layers, side.keys, side.weights)
    _refuse(path.name, found, sides)
    _tell(path.name, found, sides, alpha)
    model, clip = ([side.patched() for side in sides] + [None])[:2]
    return model, clip


@dataclass
class _Side:
    """What a LoRA may change: the model or the text encoder. keys: {layer: key of its weight in the host}."""

    title: str
    target: object  # MODEL or CLIP
    patcher: object
    keys: dict[str, str]
    strength: float
    layers: dict[str, dict] = field(default_factory=dict)
    made: Made = field(default_factory=Made)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        # No state dict: there a quantised weight has the shape of its packed numbers.
        return dict(self.patcher.model.named_parameters(remove_duplicate=False))

    def patched(self):
        """A clone of the MODEL or CLIP with the LoRA on it."""
        out = self.target.clone()
        out.add_patches(self.made.patches, self.strength)
        return out

    def relative_change(self) -> float:
        """How large the change is beside the weights, with the strength that was asked for."""
        weights = self.weights
        # A loaded model may have LoRAs in its weights, this one too; then the weights themselves are in the backup.
        backup = {key: saved.weight for key, saved in self.patcher.backup.items()}
        # Where ComfyUI keeps a scale beside the numbers of a weight, these are not the weight.
        plain = {name: backup.get(key, weights[key]) for name in self.made.layers
                 if (key := self.keys[name]).removesuffix("weight") + "scale_weight" not in weights}
        return abs(self.strength) * relative_change(self.layers, self.made.layers, plain)


def _refuse(filename, found, sides) -> None:
    """Raises ValueError for a file of which nothing acts, or most of which is of another size."""
    for side in sides:
        wrong = side.made.wrong_size
        if len(wrong) > len(side.made.layers):
            raise ValueError(f"{filename}: {wrong[0]}: {side.made.left_out[wrong[0]]}, and so it is with {len(wrong)} of "
                             f"its {len(side.layers)} layers for {side.title}: this is a LoRA of another size of the model. "
                             "Choose that model, or a LoRA of this one.")
    if any(side.made.patches for side in sides):
        return
    reasons = found.left_out | {name: why for side in sides for name, why in side.made.left_out.items()}
    if reasons:
        is_model = all(why == WHOLE for why in reasons.values())
        raise ValueError(f"{filename}: nothing in this file acts on the model: {'; '.join(_grouped(reasons)[:4])}. " + (
            "It is a model, or no LoRA." if is_model else f"ComfyUI reads the kinds {', '.join(ADAPTERS)} and diff: choose a "
            "file of one of these, or get this one again."))
    if len(sides) == 1 and all(map(is_for_text, found.unmatched)):
        raise ValueError(f"{filename}: this file changes the text encoder alone, and none is connected. Connect a CLIP.")
    raise ValueError(f"{filename}: nothing in this file fits the model: it has names such as "
                     f"{', '.join(found.unmatched[:3])}. It is the LoRA of another model, or no LoRA.")


def _tell(filename, found, sides, alpha) -> None:
    """Everything of the file that acts, that does not, and that will act as nobody wants, into the log."""
    texts = [key for key in found.unmatched if is_for_text(key)]
    others = [key for key in found.unmatched if key not in texts]
    no_text = ("are for the text encoder, and no CLIP is connected" if len(sides) == 1 else
               "have no place in this text encoder")
    for keys, why in ((others, "have no place in this model"), (texts, no_text)):
        if keys:
            logging.warning("%s: %d tensors %s: %s", filename, len(keys), why, _some(keys))
    for line in _grouped(found.left_out | {name: why for side in sides for name, why in side.made.left_out.items()}):
        logging.warning("%s: left out: %s", filename, line)
    for note in found.notes:
        logging.warning("%s: %s", filename, note)
    changed = (f"{len(side.made.layers)} layers of {side.title} ({_kinds(side.made.kinds)})" for side in sides
               if side.made.layers)
    logging.info("%s: changes %s", filename, " and ".join(changed))
    for source, count in found.alphas.items():
        said = f"alpha is stated by {source}" if source != NOBODY else "no alpha is stated, scale 1 (alpha = rank) is assumed"
        logging.info("%s: %s, for %d layers", filename, said, count)
    if alpha and USER not in found.alphas:
        logging.info("%s: the node's alpha %g is not used", filename, alpha)
    for side in sides:
        if (change := side.relative_change()) > TOO_STRONG:
            logging.warning("%s: its change is %.1f times as large as the weights of %s (less than half is usual), which "
                            "ruins the result: %s", filename, change, side.title, _advice(found, side, alpha, 0.3 / change))


def _advice(found, side, alpha, factor) -> str:
    """What helps against a change that should be `factor` times as large."""
    ranks = [side.layers[name][DOWN].shape[0] for name in side.made.layers if DOWN in side.layers[name]]
    if ranks and (NOBODY in found.alphas or (USER in found.alphas and alpha > 1)):
        return (f"the file states no alpha, its rank is {ranks[0]}. Set alpha on the node: 1 is usual for files that were "
                "exported from SAT")
    return f"lower the strength to {side.strength * factor:.2g} or less, or get the file with its right alpha"


def _grouped(reasons: dict[str, str]) -> list[str]:
    """One line for each reason, with the names that it holds for."""
    groups = {}
    for name, why in reasons.items():
        groups.setdefault(why, []).append(name)
    return [f"{_some(names)}: {why}" for why, names in groups.items()]


def _some(names, count: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _kinds(kinds) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def lora_path(name: str) -> Path:
    """Where the LoRA called `name` lies. Raises FileNotFoundError."""
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise FileNotFoundError(f"{name}: no such LoRA in {', '.join(folder_paths.get_folder_paths('loras'))}. Put it there, "
                                "or choose one of the list.")
    return Path(path)


def _layers(patcher, prefix: str, marker: str = "") -> dict[str, str]:
    """{name of a layer: key of its weight in the host}. marker: what the name stands behind, if anything."""
    out = {}
    for key, _ in patcher.model.named_parameters(remove_duplicate=False):
        if key.startswith(prefix) and key.endswith(".weight") and marker in key:
            name = key[len(prefix):] if not marker else key.split(marker, 1)[1]
            out[name.removesuffix(".weight")] = key
    return out
