"""The latents that SANA-Video's models were trained on: of Wan 2.1's autoencoder, of LTX-2's, and of the embedded models' own."""

from __future__ import annotations

import logging

import comfy.latent_formats

from ..previews import TINY_VIDEO, TINY_VIDEO_BIAS, contact_sheet


class WanLatent(comfy.latent_formats.Wan21):
    """16 channels, 8 x 8 px and 4 frames each, normalised channel by channel."""

    spacial_downscale_ratio = 8  # hosts before 0.11 do not say so themselves
    temporal_downscale_ratio = 4
    latent_rgb_factors_reshape = staticmethod(contact_sheet)


class LTX2Latent(comfy.latent_formats.LTXV):
    """128 channels, 32 x 32 px and 8 frames each; the host's autoencoder normalises them itself."""

    spacial_downscale_ratio = 32
    temporal_downscale_ratio = 8
    latent_rgb_factors_reshape = staticmethod(contact_sheet)

    def __init__(self):
        # The preview's colours are those of LTX-2's autoencoder where the host has them.
        getattr(comfy.latent_formats, "LTXAV", comfy.latent_formats.LTXV).__init__(self)


class EmbeddedLatent(comfy.latent_formats.LatentFormat):
    """Of the embedded CogVideoX autoencoder: 16 channels, 8 x 8 px and 4 frames each, scaled to unit variance."""

    latent_channels = 16
    latent_dimensions = 3
    spacial_downscale_ratio = 8
    temporal_downscale_ratio = 4
    scale_factor = 0.7
    latent_rgb_factors = [list(row) for row in TINY_VIDEO]
    latent_rgb_factors_bias = list(TINY_VIDEO_BIAS)
    latent_rgb_factors_reshape = staticmethod(contact_sheet)


FORMATS = {"wan": WanLatent, "ltx2": LTX2Latent, "cogvideox": EmbeddedLatent}
# What to load, what gives an empty latent.
PARTNERS = {
    "wan": ("Wan 2.1's autoencoder (wan_2.1_vae.safetensors)", "EmptyHunyuanLatentVideo"),
    "ltx2": ("LTX-2's autoencoder", "EmptyLTXVLatentVideo"),
    "cogvideox": ("the embedded CogVideoX autoencoder, with Load CogVideoX VAE", "EmptyHunyuanLatentVideo"),
}


def tell_of_partner(kind: str) -> None:
    """Into the log: which autoencoder goes with a model, and that this host lacks it."""
    if kind == "ltx2" and not hasattr(comfy.latent_formats, "LTXAV"):
        logging.warning("This ComfyUI knows no LTX-2 autoencoder, so that what this model draws cannot be decoded here: update "
                        "ComfyUI.")
    logging.info("Its latents are of %s; an empty one comes from %s", *PARTNERS[kind])
