"""What networks compute in where the host computes on a CPU. The host says fp32 there; a processor that multiplies bf16 takes
a third of that time, and half the memory. The host's options for number types win."""

from __future__ import annotations

import functools
import logging

import comfy.model_management as mm
import torch

from ..kernels import processor

MODEL_OPTIONS = ("fp32_unet", "fp64_unet", "fp16_unet", "bf16_unet", "fp8_e4m3fn_unet", "fp8_e5m2_unet", "fp8_e8m0fnu_unet")
TEXT_OPTIONS = ("fp32_text_enc", "fp16_text_enc", "bf16_text_enc", "fp8_e4m3fn_text_enc", "fp8_e5m2_text_enc")


def models_in_bf16() -> bool:
    """Whether transformers and ControlNets that can be are computed in bf16 though the host would take fp32."""
    chosen = mm.is_device_cpu(mm.get_torch_device()) and _free(MODEL_OPTIONS)
    if chosen:
        _say("This processor multiplies bf16: transformers and ControlNets compute in it. ComfyUI's option --fp32-unet turns that off.")
    return chosen


def multiply_in_bf16(network: torch.nn.Module, device: torch.device) -> None:
    """Let a text encoder's linear layers multiply in bf16, where it is on a CPU for which that pays. Everything between them,
    the sums above all, stays in fp32, which the host computes text encoders in on every device."""
    if not (mm.is_device_cpu(device) and _free(TEXT_OPTIONS)):
        return
    _say("This processor multiplies bf16: text encoders do so. ComfyUI's option --fp32-text-enc turns that off.")
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda module, args: (args[0].to(torch.bfloat16), *args[1:]))
            module.register_forward_hook(lambda module, args, out: out.float())


@functools.cache
def _say(line: str) -> None:
    """Once a session."""
    logging.info(line)


def _free(options) -> bool:
    """Whether the processor multiplies bf16 and the host was not told what to compute in."""
    told = any(getattr(mm.args, name, False) for name in (*options, "force_fp32", "force_fp16"))
    return processor.multiplies_bf16() and not told
