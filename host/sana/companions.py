"""What a Sana model is connected to: its text, its latent, its noise levels, its guider; refused or warned of if another
model's."""

from __future__ import annotations

import logging

import torch

from ...sana_core.config import SanaParams
from ...sana_core.text import MAX_TOKENS
from ..compat import corrects_empty_latents

PIXELS = 32                # px a side of one latent pixel
TEXT_MARK = "sana_text"    # in a CONDITIONING's dictionary: of Sana's text encoder
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


def check_sampling(sampling) -> None:
    """Raise ValueError unless a MODEL's model_sampling is a rectified flow's, as Sana is.

    Asked by what it computes: nodes put classes of their own there.
    """
    sigma, output, x = torch.tensor([0.5]), torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 2.0)
    if float(sampling.calculate_denoised(sigma, output, x)) != 1.5 or float(sampling.calculate_input(sigma, x)) != 2.0:
        kind = ", ".join(base.__name__ for base in type(sampling).__mro__[:3])
        raise ValueError(f"A node before the sampler gave this model another kind of sampling ({kind}). Sana is a flow model: "
                         "take the node out (ModelSamplingDiscrete, ModelSamplingContinuousEDM, ...); for another shift use "
                         "ModelSamplingSD3.")


def check_compute(model) -> None:
    """Warn of a number type that a node (ModelComputeDtype) has set and that overflows in this model, a SanaModel."""
    supported, compute = model.model_config.supported_inference_dtypes, model.manual_cast_dtype
    if compute is not None and compute.itemsize == 2 and compute not in supported:
        logging.warning("This model was told to compute in %s, where it overflows to black: take ModelComputeDtype out, or set it "
                        "to bf16 or fp32.", compute)


def check_context(context, params: SanaParams, marked: bool) -> None:
    """Raise ValueError unless context is (B, T, caption_channels) and may be Sana's. marked: with TEXT_MARK.

    Without the mark it may still be another pack's, which has all 300 tokens, or the host's for PixelDiT, the same; those
    of other models are as long as the prompt, and of another layer of Gemma.
    """
    if context is None:
        raise ValueError("Sana got no text. Connect Sana Text Encode to positive and negative.")
    if context.ndim != 3 or context.shape[-1] != params.caption_channels:
        kind = {768: " (CLIP-L, as of Stable Diffusion 1.5)", 1024: " (CLIP-H, as of Stable Diffusion 2)",
                2048: " (as of SDXL)", 4096: " (T5-XXL, as of FLUX or SD3)"}.get(context.shape[-1], "")
        raise ValueError(
            f"This text was encoded for another model: its width is {context.shape[-1]}{kind}, this Sana model reads "
            f"{params.caption_channels}{' (Gemma-2-2B)' * (params.caption_channels == 2304)}. Load the text encoder "
            "with Load Sana Text Encoder, and encode with Sana Text Encode.")
    if marked:
        return
    if context.shape[1] % MAX_TOKENS:
        raise ValueError(
            f"This text was encoded for another model that reads Gemma-2 too, such as Lumina 2: it has {context.shape[1]} "
            f"tokens, Sana's have {MAX_TOKENS}, of another layer and behind an instruction. Load the same file with Load Sana "
            "Text Encoder in place of Load CLIP, and encode with Sana Text Encode.")
    logging.warning("This text does not come from Load Sana Text Encoder: Sana may not understand it. With that loader and "
                    "Sana Text Encode it would be read as in training.")


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
