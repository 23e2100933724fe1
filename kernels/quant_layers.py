"""Which layers of a checkpoint are quantised, and what its tensors would be without: ComfyUI's mixed-precision format.

Beside `<layer>.weight` stand its scales. What they mean is told in one of these ways, all of which are read:

    _quantization_metadata     JSON in the file's metadata, {"layers": {layer: {"format": ...}}}; what is written here
    <layer>.comfy_quant        the same entry as JSON in a tensor of bytes; what ComfyUI's save nodes write
    scaled_fp8                 the older form: a marker of that name, scale_weight and scale_input beside each weight
    nothing                    float8_e4m3fn weights as they were cast, without any scale or with a weight_scale beside each,
                               one number or one a row
    <layer>.Q4_0_qweight       blocks of ggml_blocks.py in place of the weight
"""

from __future__ import annotations

import json
import math
import re

import torch

from . import ggml_blocks
from .quant import READABLE, ROWWISE, dequantise, fits, quantise

METADATA = "_quantization_metadata"
MARKER = "scaled_fp8"
_OLD = {"scale_weight": "weight_scale", "scale_input": "input_scale"}
_FOUR_BITS = ("weight_s_rel", "weight_s_channel", "weight_codebook", "weight_zeros")  # beside two numbers a byte, in int8
PRODUCT = "pre_quant_scale"  # of an nvfp4 layer's inputs, which are multiplied by it
LEAVES = ("weight_scale", "weight_scale_2", "input_scale", PRODUCT, "comfy_quant", *_FOUR_BITS, *_OLD)


def float_shapes(shapes: dict[str, tuple], dtypes: dict) -> dict[str, tuple]:
    """{key: shape} of the same weights unquantised: without scales and entries, packed numbers counted as what they are.

    Both arguments by key, from the header of a file. Nothing is read.
    """
    layers = {key[: -len(".weight")] for key in shapes if key.endswith(".weight")}
    out = {}
    for key, shape in shapes.items():
        layer, _, leaf = key.rpartition(".")
        if key == MARKER or (leaf in LEAVES and layer in layers):
            continue
        if ggml_blocks.format_of(leaf) and (blocks := ggml_blocks.float_shape(leaf, shape)):
            out[f"{layer}.weight"] = blocks
            continue
        four_bits = dtypes[key] == torch.uint8 or any(f"{layer}.{beside}" in shapes for beside in _FOUR_BITS)
        packed = leaf == "weight" and dtypes[key].itemsize == 1 and four_bits and len(shape) == 2  # two numbers a byte
        out[key] = (shape[0], 2 * shape[1]) if packed else shape
    return out


def read_layers(state_dict: dict, metadata_layers: dict | None = None) -> tuple[dict, dict]:
    """(tensors, {layer: its entry}) of a checkpoint: scales under their present names, entries taken out.

    state_dict: names without a saver's prefix. metadata_layers: what METADATA says of the layers, under the same names.
    An fp8 layer that brings no scale for its inputs is marked to be multiplied in full precision. Raises ValueError for
    a format that no ComfyUI describes in this way, and for numbers that nothing describes.
    """
    out, entries = {}, dict(metadata_layers or {})
    marker = state_dict.get(MARKER)
    for key, tensor in state_dict.items():
        layer, _, leaf = key.rpartition(".")
        if leaf == "comfy_quant":
            entries[layer] = _entry(tensor, key)
        elif blocks := ggml_blocks.format_of(leaf):
            entries[layer], out[f"{layer}.weight"] = {"format": blocks}, tensor
        elif key != MARKER and not (leaf == "scale_input" and tensor.numel() == 1 and tensor.item() == 1):  # 1: not known
            out[f"{layer}.{_OLD[leaf]}" if leaf in _OLD else key] = tensor
    if marker is not None:
        for key in state_dict:
            if key.endswith(".scale_weight"):
                layer = key.removesuffix(".scale_weight")
                entries.setdefault(layer, {"format": _fp8_name(out[f"{layer}.weight"], out[f"{layer}.weight_scale"])})
                if marker.numel() == 2:  # how that form asks for full precision
                    entries[layer]["full_precision_matrix_mult"] = True
    for key, tensor in out.items():
        layer, _, leaf = key.rpartition(".")
        if leaf != "weight" or layer in entries or (tensor.is_floating_point() and tensor.dtype.itemsize > 1):
            continue
        scale = out.get(f"{layer}.weight_scale")
        if not tensor.is_floating_point() or (scale is not None and scale.numel() != 1 and not _by_rows(tensor, scale)):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"nothing in it says how to read the {kind} numbers of {key}. Take the file that it was made from, "
                             "in bf16 or fp16.")
        if scale is not None:  # one number beside an fp8 weight has but one meaning, and so has one for each row
            entries[layer] = {"format": _fp8_name(tensor, scale)}
    for layer, entry in entries.items():
        if not isinstance(entry, dict) or "format" not in entry or f"{layer}.weight" not in out:
            raise ValueError(f"what it says of the quantised layer {layer} cannot be understood ({entry}). Get the file again.")
        entries[layer] = _settled(out, layer, entry)
    return out, entries


def unscaled_layers(state_dict: dict, known=()) -> dict:
    """{layer: entry} for float8_e4m3fn matrices that nothing describes; a scale of 1 is put beside each, in place."""
    found = {}
    for key, tensor in list(state_dict.items()):
        layer = key.removesuffix(".weight")
        if layer != key and layer not in known and tensor.dtype == torch.float8_e4m3fn and tensor.ndim == 2:
            found[layer] = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
            state_dict[f"{layer}.weight_scale"] = torch.ones(())
    return found


def without_layers(state_dict: dict, entries: dict, dtype: torch.dtype) -> dict:
    """The state dict with every quantised layer turned back to a matrix of `dtype`. Raises ValueError for a format that
    is not in quant.READABLE."""
    if strange := {entry["format"] for entry in entries.values()} - {*READABLE}:
        raise ValueError(f"its format {', '.join(sorted(strange))} cannot be turned back into {dtype}: only "
                         f"{', '.join(READABLE)} can.")
    if product := next((layer for layer in entries if f"{layer}.{PRODUCT}" in state_dict), None):
        raise ValueError(f"the inputs of its layer {product} are multiplied by a {PRODUCT}, without which its matrix is another "
                         "layer's: it cannot be turned back. Choose weight_dtype default, on a ComfyUI that reads it (0.33 and newer).")
    scales = {f"{layer}.{leaf}" for layer in entries for leaf in LEAVES}
    out = {key: tensor for key, tensor in state_dict.items() if key not in scales}
    for layer, entry in entries.items():
        tensors = {leaf: state_dict[key] for leaf in ("weight", "weight_scale", "weight_scale_2")
                   if (key := f"{layer}.{leaf}") in state_dict}
        out[f"{layer}.weight"] = dequantise(tensors, entry).to(dtype)
    return out


def reason_to_keep(name: str, kept) -> str | None:
    """Why the layer `name` stays as it is, by a table of (pattern, reason); None when nothing speaks against it."""
    return next((reason for pattern, reason in kept if re.search(pattern, name)), None)


def quantised(state_dict: dict, kind: str, kept, largest_inputs: dict | None = None) -> tuple[dict, dict]:
    """(tensors, {layer: entry}) with the Linear layers of canonical tensors quantised as `kind`, a name of quant.FORMATS.

    kept: table of (pattern, reason) of layers that stay. largest_inputs: {layer: largest magnitude of its inputs}, from
    calibration. Works on a part of a model, and on the meta device.
    """
    out, entries = {}, {}
    for key, tensor in state_dict.items():
        layer = key.removesuffix(".weight")
        if layer == key or not fits(tensor.shape, kind) or reason_to_keep(layer, kept):
            out[key] = tensor
            continue
        tensors, entries[layer] = quantise(tensor, kind, (largest_inputs or {}).get(layer))
        out |= {f"{layer}.{leaf}": t for leaf, t in tensors.items()}
    return out, entries


def to_metadata(entries: dict) -> dict[str, str]:
    """The entries as metadata of a safetensors file."""
    return {METADATA: json.dumps({"format_version": "1.0", "layers": entries})}


def from_metadata(metadata: dict[str, str]) -> dict:
    """{layer: entry} of a file's metadata, {} when it says nothing. Raises ValueError when it cannot be read."""
    if METADATA not in metadata:
        return {}
    try:
        return dict(json.loads(metadata[METADATA])["layers"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"its {METADATA} cannot be read. The file is damaged: get it again.") from None


def _entry(tensor, key):
    try:
        return json.loads(bytes(tensor.tolist()))
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{key} cannot be read, expected JSON in bytes. The file is damaged: get it again.") from None


def _by_rows(weight, scale):
    return weight.ndim == 2 and tuple(scale.shape) in ((len(weight),), (len(weight), 1))


def _fp8_name(weight, scale):
    if scale.numel() != 1 and _by_rows(weight, scale):
        return ROWWISE
    return "float8_e5m2" if weight.dtype == torch.float8_e5m2 else "float8_e4m3fn"


def _settled(tensors, layer, entry):
    """The entry, complete: an fp8 weight has a scale, and one whose inputs have none says so."""
    if not entry["format"].startswith("float8"):
        return entry
    tensors.setdefault(f"{layer}.weight_scale", torch.ones(()))
    return entry if f"{layer}.input_scale" in tensors else entry | {"full_precision_matrix_mult": True}


def summary(shapes: dict[str, tuple], entries: dict, kept) -> list[str]:
    """Lines for people: how much of a model is quantised, and what stays for which reason.

    shapes: {key: shape} of the canonical tensors. entries, kept: as for `quantised`.
    """
    matrices = {key.removesuffix(".weight"): math.prod(shape) for key, shape in shapes.items()
                if key.endswith(".weight") and len(shape) == 2}
    total = sum(math.prod(shape) for shape in shapes.values())
    share = sum(matrices[layer] for layer in entries) / total
    lines = [f"{len(entries)} Linear layers quantised, {share:.0%} of the weights"]
    for pattern, reason in kept:
        if count := sum(bool(re.search(pattern, layer)) for layer in matrices):
            lines.append(f"{count} kept ({pattern}): {reason}")
    if odd := sum(layer not in entries and reason_to_keep(layer, kept) is None for layer in matrices):
        lines.append(f"{odd} kept: their sides are no multiples of 16")
    if guessed := sum("full_precision_matrix_mult" in entry for entry in entries.values()):
        lines.append(f"{guessed} without calibration: their products are computed in full precision")
    return lines
