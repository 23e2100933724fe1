"""From an autoencoder and its weights to the host's VAE: the one recipe."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import comfy.model_management as mm
import comfy.sd
import comfy.utils
import torch

from .compat import load_weights, model_patcher, set_dtype
from .first_result import FirstResult


def to_unit(picture):
    """[-1, 1] -> [0, 1], in place and returned: newer hosts ignore the return value, older ones use it."""
    return picture.add_(1.0).div_(2.0).clamp_(0.0, 1.0)


def native_vae(model, state_dict: dict, working_dtypes: list, kind=comfy.sd.VAE, disable_dynamic: bool = False):
    """The host's VAE around `model`, which the caller then tells sizes and memory.

    model: a module with encode and decode, made of the host's operations, its weights not yet filled. state_dict: by
    the module's names, complete. working_dtypes: what it may compute in, best first. kind: the class of the result.
    """
    with _without("No VAE weights"):
        vae = kind(sd={})  # fills every attribute that this host's VAE has
    vae.process_output = to_unit
    vae.working_dtypes = working_dtypes
    vae.device = mm.vae_device()
    vae.vae_dtype = working_dtype(vae.device, vae.working_dtypes)
    vae.output_device = mm.intermediate_device()
    vae.first_stage_model = model.eval()
    set_dtype(model, vae.vae_dtype)
    if hasattr(mm, "archive_model_dtypes"):  # dynamic patchers read what each weight is to become
        mm.archive_model_dtypes(model)
    vae.patcher = model_patcher(model, vae.device, mm.vae_offload_device(), state_dict, disable_dynamic)
    load_weights(vae.patcher, model, model.load_state_dict, state_dict)
    vae.size = None
    vae.model_size()
    return vae


def watch_vae(vae, name: str, weights) -> None:
    """Look at the first results of both directions, also of one that runs in pieces: vae.first_results holds the looks by
    network. Arguments as for FirstResult."""
    vae.first_results = {part: FirstResult(name, weights) for part in (vae.first_stage_model.encoder, vae.first_stage_model.decoder)}
    for part, look in vae.first_results.items():
        look.watch(part)


def working_dtype(device, allowed: list) -> torch.dtype:
    """What the host would compute in: of `allowed`, best first, or fp32. Its option --fp16-vae is followed only where fp16
    is allowed: elsewhere the picture would be black."""
    wanted = mm.vae_dtype(device, allowed)
    if wanted in allowed or wanted == torch.float32:
        return wanted
    possible = {torch.float16: mm.should_use_fp16, torch.bfloat16: mm.should_use_bf16}
    chosen = next((dtype for dtype in allowed if dtype in possible and possible[dtype](device)), torch.float32)
    logging.warning("ComfyUI was told to compute VAEs in %s, where this one overflows to black: it computes in %s.", wanted, chosen)
    return chosen


@contextmanager
def progress(network, runs: int):
    """A bar of the host that moves with each of `runs` runs of `network`. (The host's operations look for interruptions
    themselves.)"""
    bar = comfy.utils.ProgressBar(runs)

    def step(*_):
        bar.update(1)

    hook = network.register_forward_hook(step)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _without(text):
    """Keep log records that contain `text` back."""
    def keep(record):
        return text not in record.getMessage()

    logging.getLogger().addFilter(keep)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(keep)
