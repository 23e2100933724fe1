"""Everything that differs between host versions (0.3.75 and newer)."""

from __future__ import annotations

import dataclasses
import inspect
import json
from contextlib import nullcontext

import comfy.model_management as mm
import comfy.model_patcher
import comfy.sample
import comfy.utils
import torch
from comfy import quant_ops
from comfy_api.latest import io
from comfyui_version import __version__

VERSION = f"ComfyUI {__version__}"
# Format of quantised weights -> a version that reads it; the first to do so may be a little older.
QUANTISED_SINCE = {"float8_e4m3fn": "0.3.75", "float8_e5m2": "0.8", "nvfp4": "0.8", "mxfp8": "0.18", "int8_tensorwise": "0.27",
                   "convrot_w4a4": "0.28", "asym_w4a8_int8": "0.31", "awq_w4a16": "0.38"}
# What newer hosts write beside an empty latent: pixels and frames a latent pixel.
EMPTY_LATENT_RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")
GENERATES_SINCE = "0.16"  # a version whose CLIPs write text; the first may be a little older
_SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def schema(**fields) -> io.Schema:
    """io.Schema with the fields that this host knows: an unknown one would keep the whole pack from loading."""
    return io.Schema(**{name: value for name, value in fields.items() if name in _SCHEMA_FIELDS})


def accepts(function, name: str) -> bool:
    """Whether `function` takes the keyword `name`."""
    return name in inspect.signature(function).parameters


def model_patcher(model, load_device, offload_device, state_dict: dict, disable_dynamic=False):
    """The host's patcher around a module: the dynamic one where there is one (0.12), unless disabled. state_dict: the tensors
    that it is to get; newer hosts ask whether they come from a fast disk, and then rather read them again than keep them."""
    plain = comfy.model_patcher.ModelPatcher
    patcher = plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)
    asked = {}
    if accepts(patcher, "fast_disk"):
        from comfy import storage
        asked["fast_disk"] = storage.state_dict_fast_disk(state_dict)
    return patcher(model, load_device=load_device, offload_device=offload_device, **asked)


def load_weights(patcher, model, load_function, *arguments) -> None:
    """load_function(*arguments), which fills `model`: dynamic patchers want the file's tensors assigned, not copied."""
    is_dynamic = getattr(patcher, "is_dynamic", None)
    how = {} if is_dynamic is None or not accepts(load_function, "assign") else {"assign": is_dynamic()}
    load_function(*arguments, **how)
    if not how.get("assign"):
        _cast_as_planned(model)


def _cast_as_planned(model) -> None:
    """Where newer hosts make layers without weights (0.30, on NVIDIA), these keep the file's type; a patcher that is not dynamic
    leaves it so, and the layer would not be of its activations' type."""
    for part in model.modules():
        for name in ("weight", "bias"):
            planned, weight = getattr(part, f"{name}_comfy_model_dtype", None), getattr(part, name, None)
            if planned is None or type(weight) is not torch.nn.Parameter or weight.dtype == planned:
                continue
            if type(weight.data) is torch.Tensor and weight.is_floating_point():
                weight.data = weight.data.to(planned)


def corrects_empty_latents() -> bool:
    """Whether the host resizes an empty latent that was made for 8 px a latent pixel (0.11 and newer)."""
    return accepts(comfy.sample.fix_empty_latent_channels, "downscale_ratio_spacial")


def fixed_empty_samples(model, latent: dict) -> torch.Tensor:
    """A LATENT's samples as the stock samplers take them: an empty one gets the model's channels and, where the host knows
    how, its size."""
    fix = comfy.sample.fix_empty_latent_channels
    ratios = {name: latent.get(name) for name in EMPTY_LATENT_RATIOS if accepts(fix, name)}
    return fix(model, latent["samples"], **ratios)


def on_device(device):
    """Context in which a VAE works on a device other than the main one (0.23 and newer), else one that does nothing."""
    return mm.cuda_device_context(device) if hasattr(mm, "cuda_device_context") else nullcontext()


def vae_output_dtype(vae) -> torch.dtype:
    """What the host keeps pictures and latents as."""
    return vae.vae_output_dtype() if hasattr(vae, "vae_output_dtype") else torch.float32


def quantised_formats() -> set[str]:
    """The formats of quantised weights that this host's layers read; none where its library for them is missing."""
    return set(quant_ops.QUANT_ALGOS) if getattr(quant_ops, "_CK_AVAILABLE", True) else set()


def hand_over_layers(config, state_dict: dict, layers: dict) -> dict:
    """Tell the host which layers are quantised: sets what it looks for on `config`, returns the tensors that it wants.

    layers: {layer: {"format": ..., ...}}, named as in the state dict.
    """
    if hasattr(type(config), "quant_config"):  # 0.4 and newer: the entries stand among the tensors
        config.quant_config = {"mixed_ops": True}
        return state_dict | {f"{layer}.comfy_quant": _as_bytes(entry) for layer, entry in layers.items()}
    config.layer_quant_config = layers
    # Here a layer is multiplied in fp8 exactly when it has a scale for its inputs.
    full = {f"{layer}.input_scale" for layer, entry in layers.items() if entry.get("full_precision_matrix_mult")}
    return {key: tensor for key, tensor in state_dict.items() if key not in full}


def has_quantised_layers(config) -> bool:
    """Whether hand_over_layers was called for this model's config."""
    return bool(config.quant_config if hasattr(type(config), "quant_config") else config.layer_quant_config)


def layers_for_saving(state_dict: dict) -> dict:
    """A model's tensors as a file takes them: 0.3.75 gives its own quantised tensors and a dictionary of entries instead."""
    told = state_dict.pop("_quantization_metadata", None)
    for layer, entry in (told or {"layers": {}})["layers"].items():
        weight = state_dict[f"{layer}.weight"]
        state_dict |= {f"{layer}.weight": weight._qdata, f"{layer}.weight_scale": weight._layout_params["scale"],
                       f"{layer}.comfy_quant": _as_bytes(entry)}
    return state_dict


def _as_bytes(entry):
    return torch.tensor(list(json.dumps(entry).encode()), dtype=torch.uint8)


def hand_over_text_layers(state_dict: dict, layers: dict, whole: bool) -> tuple[dict, dict]:
    """(weights, model options) that make the host's text encoder read these layers as quantised; unchanged without any.

    layers: {layer: {"format": ..., ...}}, named as in the network. whole: whether these are all of its Linear layers.
    """
    if not layers:
        return state_dict, {}
    if hasattr(comfy.utils, "convert_old_quants"):  # 0.4 and newer: the entries stand among the tensors
        entries = {f"{layer}.comfy_quant": _as_bytes(entry) for layer, entry in layers.items()}
        return state_dict | entries, {"quantization_metadata": {"mixed_ops": True}}
    kinds = {entry["format"] for entry in layers.values()}
    scales = {layer: state_dict[f"{layer}.weight_scale"] for layer in layers}
    if whole and len(kinds) == 1 and all(scale.numel() == 1 for scale in scales.values()):
        # Here this form can be saved again, which the other one cannot; all of a network's layers are in it.
        kind = getattr(torch, kinds.pop())
        scaled = {key: t for key, t in state_dict.items() if not key.endswith((".weight_scale", ".input_scale"))}
        scaled |= {f"{layer}.scale_weight": scale.float().reshape(()) for layer, scale in scales.items()}
        return scaled | {"scaled_fp8": torch.zeros(0, dtype=kind)}, {"scaled_fp8": kind}
    return state_dict, {"quantization_metadata": json.dumps({"layers": layers})}


def check_generates(clip) -> None:
    """Raise ValueError unless this host has text written by language models, and `clip` is one."""
    if not hasattr(clip, "generate"):
        raise ValueError(f"{VERSION} has no way to write text with a CLIP: {GENERATES_SINCE} or newer is needed. Update "
                         "ComfyUI, or take the node out and write the prompt yourself.")
    encoder = clip.cond_stage_model
    states = getattr(encoder, getattr(encoder, "clip", None) or "", encoder)
    network = getattr(states, "transformer", None)
    kind = type(network or encoder).__name__
    if not hasattr(encoder, "generate") or network is not None and not hasattr(network, "generate"):
        raise ValueError(f"This CLIP only reads text and cannot write any (it is {kind}). Connect Gemma-2 from "
                         "Load Sana Text Encoder, or another language model.")


def set_dtype(module, dtype) -> None:
    """Another storage type for a module that has been made and not been loaded, its parts included."""
    module.to(dtype)
    for part in module.modules():
        # Where a layer has no weight yet (dynamic patchers), this is what it becomes when one is assigned.
        for name in ("weight_comfy_model_dtype", "bias_comfy_model_dtype"):
            if hasattr(part, name):
                setattr(part, name, dtype)
