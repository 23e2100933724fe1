"""Everything that differs between host versions (0.3.75 and newer)."""

from __future__ import annotations

import dataclasses
import inspect

import comfy.model_patcher
import comfy.sample
from comfy_api.latest import io

_SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def schema(**fields) -> io.Schema:
    """io.Schema with the fields that this host knows: an unknown one would keep the whole pack from loading."""
    return io.Schema(**{name: value for name, value in fields.items() if name in _SCHEMA_FIELDS})


def accepts(function, name: str) -> bool:
    """Whether `function` takes the keyword `name`."""
    return name in inspect.signature(function).parameters


def model_patcher(model, load_device, offload_device, disable_dynamic=False):
    """The host's patcher around a module: the dynamic one where there is one (0.12), unless disabled."""
    plain = comfy.model_patcher.ModelPatcher
    patcher = plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)
    return patcher(model, load_device=load_device, offload_device=offload_device)


def assign_keywords(patcher, load_function) -> dict:
    """Keywords for load_function(state_dict, ...): dynamic patchers want the file's tensors assigned, not copied."""
    is_dynamic = getattr(patcher, "is_dynamic", None)
    if is_dynamic is None or not accepts(load_function, "assign"):
        return {}
    return {"assign": is_dynamic()}


def corrects_empty_latents() -> bool:
    """Whether the host resizes an empty latent that was made for 8 px a latent pixel (0.11 and newer)."""
    return accepts(comfy.sample.fix_empty_latent_channels, "downscale_ratio_spacial")
