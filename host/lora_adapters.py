"""What the host makes of a LoRA's tensors: which of them will change a weight, which cannot, and why.

The host's adapters log a failure while a picture is being made and go on with the weight as it was. Here they are tried
when the file is loaded, on weights without numbers, so that success is what they did and not what a name promises.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

import comfy.lora
import comfy.weight_adapter
import torch

from .lora_keys import ALPHA, DORA, DOWN, MID, UP

ADAPTERS = tuple(adapter.name for adapter in comfy.weight_adapter.adapters)
# Left and right factor of a matrix: the host only looks whether their product has as many numbers as the weight.
_PAIRS = ((UP, DOWN, MID), ("hada_w1_a", "hada_w1_b", "hada_t1"), ("hada_w2_a", "hada_w2_b", "hada_t2"))
_PRODUCTS = {"lora", "loha", "lokr"}  # a factor of zeros makes the whole change zero
_SCALED = {"lora", "loha", "glora"}  # alpha multiplies the whole change
_INCOMPLETE = "{} is missing, the file is incomplete"
_NUMBERS = {ALPHA, "reshape_weight"}  # tensors that the host keeps as plain numbers


@dataclass
class Made:
    """patches: {key of a weight: patch}, for ModelPatcher.add_patches. kinds: how many layers, by kind of change.
    layers: those changed. left_out: {layer, or layer and part: why}. wrong_size: those of them that have another size."""

    patches: dict[str, object] = field(default_factory=dict)
    kinds: Counter = field(default_factory=Counter)
    layers: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    wrong_size: list[str] = field(default_factory=list)


def make_patches(layers: dict[str, dict], keys: dict[str, str], weights: dict[str, torch.Tensor]) -> Made:
    """The host's patches for {layer: {part: tensor}}. keys: {layer: key of its weight}; weights: {key: tensor}."""
    made = Made()
    for name, parts in layers.items():
        shape = tuple(weights[keys[name]].shape)
        if fault := _wrong_size(parts, shape):
            made.left_out[name] = fault
            # A dense pair for a depthwise convolution is no sign of that: some trainers write it for the right model too.
            made.wrong_size += [] if _is_depthwise(shape) else [name]
            continue
        if strange := [part for part, tensor in parts.items() if tensor.is_complex()]:  # no kind has such
            made.left_out[name] = f"{strange[0]} has complex numbers"
            continue
        zero = {part for part, tensor in parts.items() if not any(_extremes(tensor))}
        _make(made, name, _fitted(parts, shape), zero, keys[name], weights)
    return made


def _make(made: Made, name, parts, zero, key, weights):
    """One layer's patches, each tried. zero: the parts that hold nothing else."""
    try:
        patches = comfy.lora.load_lora({f"{name}.{part}": t for part, t in parts.items()}, {name: key}, log_missing=False)
    except KeyError as error:
        made.left_out[name] = _INCOMPLETE.format(str(error.args[0]).removeprefix(f"{name}."))
        return
    except Exception as error:
        made.left_out[name] = f"ComfyUI cannot read its {_some(parts)}: {_first_line(error)}"
        return
    if not patches:
        made.left_out[name] = _INCOMPLETE.format(UP) if DOWN in parts else (
            f"ComfyUI knows no change that is made of {_some(parts)}")
        return
    used, kinds = [], []
    for place, patch in patches.items():
        kind = patch.name if _is_adapter(patch) else patch[0]
        what = name if place == key else f"{name}.bias"
        used += _tensors(patch)
        if place not in weights:
            made.left_out[what] = "the layer has no bias here"
            continue
        shape = tuple(weights[place].shape)
        nothing = _changes_nothing(patch, parts, zero)
        patch = patch if _is_adapter(patch) else _reshaped(patch, shape)
        if fault := nothing or _fails(patch, shape, place):
            made.left_out[what] = fault
            if not _is_adapter(patch) and patch[1][0].shape != shape:
                made.wrong_size.append(what)
            continue
        made.patches[place] = patch
        kinds.append(kind if place == key else "bias")
    made.layers += [name] if kinds else []
    made.kinds.update(kinds)
    for part, tensor in parts.items():
        if not any(tensor is other for other in used) and part not in _NUMBERS:
            made.left_out[f"{name}.{part}"] = f"ComfyUI does not use {part} beside {_some(p for p in parts if p != part)}"


def _some(names) -> str:
    return ", ".join(sorted(names))


def _first_line(error) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _is_adapter(patch) -> bool:
    return isinstance(patch, comfy.weight_adapter.WeightAdapterBase)


def _tensors(patch) -> list[torch.Tensor]:
    values = patch.weights if _is_adapter(patch) else patch[1]
    return [value for value in values if isinstance(value, torch.Tensor)]


def _wrong_size(parts, shape) -> str:
    """Why the product of a layer's matrices is not its weight's; "" when it is."""
    rows, columns = shape[0], math.prod(shape[1:])
    for left, right, middle in _PAIRS:
        if left in parts and right in parts and middle not in parts:
            up, down = tuple(parts[left].shape), tuple(parts[right].shape)
            if min(len(up), len(down)) < 2 or math.prod(up[1:]) != down[0]:
                return f"{left} and {right} of {up} and {down} are no two matrices to multiply"
            found = up[0], math.prod(down[1:])
            if found != (rows, columns):
                depthwise = ", a convolution of each channel by itself" if _is_depthwise(shape) else ""
                return f"its matrices make {found[0]} x {found[1]}, the layer has {rows} x {columns}{depthwise}"
    return ""


def _is_depthwise(shape) -> bool:
    return len(shape) > 2 and shape[1] == 1 < shape[0]


def _extremes(tensor) -> tuple[float, float]:
    """(least, greatest) number of a tensor whose numbers are finite."""
    if not tensor.numel():
        return 0.0, 0.0
    has_order = tensor.is_floating_point() and tensor.element_size() > 1
    low, high = torch.aminmax(tensor if has_order else tensor.float())
    return float(low), float(high)


def _fitted(parts, shape):
    """The parts with DoRA's sizes in the form that the host divides by: (rows, 1, ...), or (1, columns) along the inputs."""
    dora = parts.get(DORA)
    if dora is None or dora.ndim == len(shape):
        return parts
    if dora.numel() == shape[0] and tuple(dora.shape[:1]) == shape[:1]:
        return parts | {DORA: dora.reshape(-1, *[1] * (len(shape) - 1))}
    return parts | {DORA: dora.reshape(1, -1)} if len(shape) == 2 and dora.numel() == shape[1] else parts


def _reshaped(patch, shape):
    """A whole change without the ones in its shape that our layer does not have: 1 x 1 convolutions are linear here."""
    kind, (tensor, *more) = patch
    ours, theirs = ([n for n in s if n != 1] for s in (shape, tensor.shape))
    return (kind, (tensor.reshape(shape), *more)) if ours == theirs and tensor.shape != shape else patch


def _changes_nothing(patch, parts, zero) -> str:
    """Why a patch that the host would apply changes no number; "" when it may."""
    factors = [part for part, tensor in parts.items() if any(tensor is other for other in _tensors(patch))]
    kind = patch.name if _is_adapter(patch) else patch[0]
    if kind == "set" or DORA in factors:
        return ""
    if (found := [part for part in factors if part in zero]) and (kind in _PRODUCTS or len(found) == len(factors)):
        return f"{found[0]} is zero, as before the first step of a training"
    return "its alpha is zero" if ALPHA in zero and kind in _SCALED else ""


def _fails(patch, shape, key) -> str:
    """Why a patch cannot be applied to a weight of this shape; "" when it can."""
    if not _is_adapter(patch):
        found = tuple(patch[1][0].shape)
        return "" if found == shape else f"its {patch[0]} has {found}, the layer has {shape}"
    # Without numbers it costs nothing, but what looks at numbers (the bound in OFT) fails there and is tried in full.
    for device in ("meta", "cpu"):
        with _errors() as told:
            try:
                weight = torch.zeros(shape, device=device)
                out = patch.calculate_weight(weight, key, 1.0, 1.0, None, lambda change: change, torch.float32)
                if not told and (out is None or tuple(out.shape) != shape):
                    told.append("no result" if out is None else f"it makes {tuple(out.shape)}, the layer has {shape}")
            except Exception as error:
                told.append(_first_line(error))
        if not told:
            return ""
    return f"ComfyUI cannot apply its {patch.name}: {told[0].removeprefix(f'ERROR {patch.name} {key} ')}"


@contextmanager
def _errors():
    """Collects what this thread logs as an error meanwhile, in place of the log: so the adapters report a failure."""
    told, thread = [], threading.get_ident()

    def take(record):
        if record.levelno < logging.ERROR or record.thread != thread:
            return True
        told.append(_first_line(record.getMessage()))
        return False

    root = logging.getLogger()
    root.addFilter(take)
    try:
        yield told
    finally:
        root.removeFilter(take)
