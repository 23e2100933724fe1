"""What a Sana model is connected to beside what sana_checks.py looks at: its latent, its noise levels, its guider; refused or
warned of if another model's."""

from __future__ import annotations

import logging

import torch

from ...sana_core.config import SanaParams
from ..compat import corrects_empty_latents

PIXELS = 32                # px a side of one latent pixel
SPRINT_STEPS = 4           # more than the reference ever takes
SPRINT_CFG = 2.0           # above it pictures are plainly damaged
CFG_SCALES = ("cfg", "cfg1", "cfg2")  # of CFGGuider and DualCFGGuider


def around_sampling(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """The host's OUTER_SAMPLE wrapper."""
    guider = executor.class_obj
    check_guidance(guider, len(sigmas) - 1, guider.model_patcher.model.model_config.params)
    return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)


def check_guidance(guider, steps: int, params: SanaParams) -> None:
    """Raise ValueError where a Sprint model is guided as one without guidance of its own; warn of what only costs time."""
    if not params.guidance_embeds:
        return
    remedy = ("draw with Sana Sprint Sampler, or set KSampler to lcm, 1 to 4 steps and CFG 1; FluxGuidance sets the guidance "
              "that is built in.")
    cfg = max(float(getattr(guider, name, 1.0)) for name in CFG_SCALES)
    if cfg > SPRINT_CFG:
        raise ValueError(f"CFG is {cfg:g}, and this is a Sana Sprint model: its guidance is built in, CFG on top of it spoils "
                         f"the picture. Instead {remedy}")
    if cfg != 1.0:
        logging.warning("Sana Sprint has its guidance built in: CFG %g guides it twice, at twice the time. Better %s", cfg, remedy)
    if steps > SPRINT_STEPS:
        logging.warning("Sana Sprint was distilled for 1 to 4 steps: %d bring nothing. Better %s", steps, remedy)


def check_latent(noise, latent, params: SanaParams) -> None:
    """Raise ValueError for a latent (B, C, H, W) that Sana cannot sample."""
    if noise is not None:
        shape = tuple(noise.shape)
        if len(shape) != 4 or shape[1] != params.in_channels:
            raise ValueError(f"This latent is of another model: it is {' x '.join(map(str, shape))}, Sana's are batch x "
                             f"{params.in_channels} x height/{PIXELS} x width/{PIXELS}. Make it with Empty Sana Latent, "
                             "or encode the picture with a VAE from Load DC-AE.")
        if 0 in shape:
            raise ValueError(f"This latent is empty: {' x '.join(map(str, shape))}. Batch and sides must be at least 1.")
    if latent is None:
        return
    if torch.isnan(latent).any() or torch.isinf(latent).any():
        raise ValueError("This latent holds NaN or infinite numbers, from an earlier node: sampling it would give a "
                         "broken picture.")
    if corrects_empty_latents() or latent.any() or is_ours(latent):
        return
    # Here a stock empty latent has four times the wanted side, and only its zeros can tell it from ours.
    height, width = (side * PIXELS for side in latent.shape[-2:])
    times = (height * width) ** 0.5 / (params.sample_size * PIXELS)
    told = f"Empty Latent Image of this ComfyUI version reckons with 8 px a latent pixel, Sana has {PIXELS}"
    if times > 2.5:
        raise ValueError(f"This empty latent makes a picture of {width} x {height} px, but this model makes about "
                         f"{params.sample_size * PIXELS} x {params.sample_size * PIXELS}. {told}: use Empty Sana Latent.")
    if times > 1.25:
        logging.warning("This empty latent makes a picture of %d x %d px. If that is four times what you want: %s, use Empty "
                        "Sana Latent.", width, height, told)


def empty_samples(batch: int, channels: int, height: int, width: int, device) -> torch.Tensor:
    """Zeros (B, C, H, W) that `is_ours` knows.

    They are minus zero, which is equal to zero, adds nothing to noise, and stays what it is when a node copies, repeats,
    crops or scales it. Of a LATENT older hosts hand nothing but the samples on.
    """
    return torch.full((batch, channels, height, width), -0.0, device=device)


def is_ours(latent: torch.Tensor) -> bool:
    """Whether an empty latent, or a part of it, was made by `empty_samples`."""
    return bool(torch.signbit(latent).any())
