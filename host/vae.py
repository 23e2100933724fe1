"""DC-AE as a native VAE of the host."""

from __future__ import annotations

import logging
from pathlib import Path

import comfy.model_management as mm
import comfy.ops
import comfy.sd
import torch

from ..sana_core.autoencoder import AutoencoderDC, DCAEParams
from ..sana_core.autoencoder_checkpoint import check_shapes, identify_autoencoder, to_canonical
from ..storage import open_checkpoint
from .files import is_pipeline
from .native_vae import native_vae

WRAPPING = "vae."  # before the names of a VAE inside a whole saved checkpoint


class HostDCAE(AutoencoderDC):
    """DC-AE that says what is wrong with an input, where its first convolution would not."""

    def encode(self, x):
        if x.shape[0] == 0 or min(x.shape[-2:]) < self.params.compression:
            raise ValueError(f"This picture cannot be encoded: {x.shape[0]} of {x.shape[-1]} x {x.shape[-2]} px, it must "
                             f"be at least {self.params.compression} x {self.params.compression}.")
        return super().encode(x)

    def decode(self, z):
        if z.ndim != 4 or z.shape[1] != self.params.latent_channels:
            raise ValueError(f"This latent is of another model: it is {' x '.join(map(str, z.shape))}, DC-AE decodes "
                             f"batch x {self.params.latent_channels} x height x width. Decode it with its own VAE.")
        if 0 in z.shape:
            raise ValueError(f"This latent is empty: {' x '.join(map(str, z.shape))}.")
        if not z.isfinite().all():
            raise ValueError("This latent holds NaN or infinite numbers, from an earlier node: there is no picture in it.")
        return super().decode(z)


def load_dcae(path, disable_dynamic: bool = False):
    """File or diffusers pipeline -> VAE. Raises ValueError, naming what the file is instead."""
    path = Path(path)
    checkpoint = open_checkpoint(path, **({"subfolder": "vae"} if is_pipeline(path) else {}))
    shapes = _unwrapped(checkpoint.shapes)
    identity = identify_autoencoder(shapes, checkpoint.config, str(path))
    check_shapes(shapes, identity, path.name)
    logging.info("%s: %s; %s", path.name, identity.variant, identity.evidence)
    vae = dcae(identity.params, to_canonical(_unwrapped(checkpoint.load()), identity.layout), disable_dynamic)
    vae.patcher.cached_patcher_init = (_patcher, (path,))
    return vae


def dcae(params: DCAEParams, state_dict: dict, disable_dynamic: bool = False) -> comfy.sd.VAE:
    """The host's VAE around a DC-AE. state_dict: canonical names, complete."""
    model = HostDCAE(params, device=None, dtype=None, operations=comfy.ops.disable_weight_init)
    # In fp16 it can overflow, to black.
    vae = native_vae(model, state_dict, [torch.bfloat16, torch.float32], disable_dynamic=disable_dynamic)
    vae.downscale_ratio = vae.upscale_ratio = params.compression
    vae.latent_channels, vae.latent_dim, vae.output_channels = params.latent_channels, 2, 3
    # The widest place is the stage of full size: a residual block's input, its normalised or activated copy, and the
    # two convolutions' outputs, and the shortcut of the upsampling before it, twice as wide as the stage: 6 C a pixel.
    # Never 0, which hosts divide by: an empty latent shall get as far as its own error.
    encode, decode = (6 * c[0] for c in (params.encoder_block_out_channels, params.decoder_block_out_channels))
    vae.memory_used_encode = lambda shape, dtype: max(1, encode * shape[2] * shape[3] * mm.dtype_size(dtype))
    vae.memory_used_decode = lambda shape, dtype: max(
        1, decode * shape[2] * shape[3] * params.compression**2 * mm.dtype_size(dtype))
    return vae


def _patcher(path, disable_dynamic=False):
    return load_dcae(path, disable_dynamic).patcher


def _unwrapped(mapping: dict) -> dict:
    """The VAE's part of a whole checkpoint; anything else as it is."""
    part = {key[len(WRAPPING):]: value for key, value in mapping.items() if key.startswith(WRAPPING)}
    return part or mapping
