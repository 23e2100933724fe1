"""What all of Sana's MODELs, of pictures and of clips, refuse or warn of: text of another model, another kind of sampling, a type
to compute in that overflows."""

from __future__ import annotations

import logging

import torch

from ..sana_core.text import MAX_TOKENS

TEXT_MARK = "sana_text"    # in a CONDITIONING's dictionary: of Sana's text encoder


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
    """Warn of a number type that a node (ModelComputeDtype) has set and that overflows in this model, one of the pack's."""
    supported, compute = model.model_config.supported_inference_dtypes, model.manual_cast_dtype
    if compute is not None and compute.itemsize == 2 and compute not in supported:
        logging.warning("This model was told to compute in %s, where it overflows to black: take ModelComputeDtype out, or set it "
                        "to bf16 or fp32.", compute)


def check_context(context, caption_channels: int, marked: bool) -> None:
    """Raise ValueError unless context is (B, T, caption_channels) and may be Sana's. marked: with TEXT_MARK.

    Without the mark it may still be another pack's, which has all 300 tokens, or the host's for PixelDiT, the same; those
    of other models are as long as the prompt, and of another layer of Gemma.
    """
    if context is None:
        raise ValueError("Sana got no text. Connect Sana Text Encode to positive and negative.")
    if context.ndim != 3 or context.shape[-1] != caption_channels:
        kind = {768: " (CLIP-L, as of Stable Diffusion 1.5)", 1024: " (CLIP-H, as of Stable Diffusion 2)",
                2048: " (as of SDXL)", 4096: " (T5-XXL, as of FLUX or SD3)"}.get(context.shape[-1], "")
        raise ValueError(
            f"This text was encoded for another model: its width is {context.shape[-1]}{kind}, this Sana model reads "
            f"{caption_channels}{' (Gemma-2-2B)' * (caption_channels == 2304)}. Load the text encoder "
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
