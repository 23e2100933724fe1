"""From weights to the host's ModelPatcher: the one recipe for diffusion models."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.utils
import torch

from .compat import assign_keywords, model_patcher

WEIGHT_DTYPES = {
    "default": None,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
}


def weight_dtype_of(name: str) -> torch.dtype | None:
    """torch dtype of a WEIGHT_DTYPES name, None for "default". Raises ValueError."""
    if name not in WEIGHT_DTYPES:
        raise ValueError(f"weight_dtype is {name!r}: choose one of {', '.join(WEIGHT_DTYPES)}.")
    return WEIGHT_DTYPES[name]


def diffusion_model(config, state_dict: dict, dtype: torch.dtype | None = None, disable_dynamic: bool = False):
    """ModelPatcher around `config`'s model with these weights in it.

    config: a supported_models_base.BASE. state_dict: canonical names, complete (the caller has checked), emptied here.
    dtype: what weights are stored as; None lets the host choose among config.supported_inference_dtypes. Activations
    are always of a supported dtype, whatever the storage.
    """
    load_device, offload_device = mm.get_torch_device(), mm.unet_offload_device()
    supported = list(config.supported_inference_dtypes)
    if dtype is None:
        dtype = mm.unet_dtype(model_params=comfy.utils.calculate_parameters(state_dict), supported_dtypes=supported,
                              weight_dtype=comfy.utils.weight_dtype(state_dict))
    compute = mm.unet_manual_cast(dtype, load_device, supported)
    if compute is None and dtype not in supported:
        # The host would compute in fp16 wherever the device can; a model trained in bf16 overflows there.
        compute = mm.unet_dtype(supported_dtypes=supported)
    config.set_inference_dtype(dtype, compute)

    model = config.get_model(state_dict)
    patcher = model_patcher(model, load_device, offload_device, disable_dynamic)
    if not mm.is_device_cpu(offload_device):
        model.to(offload_device)
    model.load_model_weights(state_dict, "", **assign_keywords(patcher, model.load_model_weights))
    return patcher
