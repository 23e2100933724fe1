"""DC-AE as a native VAE of the host."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management as mm
import comfy.ops
import comfy.sd

from ..sana_core.autoencoder import AutoencoderDC, DCAEParams
from ..sana_core.autoencoder_checkpoint import check_shapes, identify_autoencoder, to_canonical
from ..storage import open_checkpoint
from .compat import assign_keywords, model_patcher
from .files import is_pipeline

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


def to_unit(picture):
    """[-1, 1] -> [0, 1], in place and returned: newer hosts ignore the return value, older ones use it."""
    return picture.add_(1.0).div_(2.0).clamp_(0.0, 1.0)


def load_dcae(path, disable_dynamic: bool = False):
    """File or diffusers pipeline -> VAE. Raises ValueError, naming what the file is instead."""
    path = Path(path)
    checkpoint = open_checkpoint(path, **({"subfolder": "vae"} if is_pipeline(path) else {}))
    shapes = _unwrapped(checkpoint.shapes)
    identity = identify_autoencoder(shapes, checkpoint.config, str(path))
    check_shapes(shapes, identity, path.name)
    logging.info("%s: %s; %s", path.name, identity.variant, identity.evidence)
    vae = native_vae(identity.params, to_canonical(_unwrapped(checkpoint.load()), identity.layout), disable_dynamic)
    vae.patcher.cached_patcher_init = (_patcher, (path,))
    return vae


def native_vae(params: DCAEParams, state_dict: dict, disable_dynamic: bool = False) -> comfy.sd.VAE:
    """The host's VAE around a DC-AE. state_dict: canonical names, complete."""
    with _without("No VAE weights"):
        vae = comfy.sd.VAE(sd={})  # fills every attribute that this host's VAE has
    vae.downscale_ratio = vae.upscale_ratio = params.compression
    vae.latent_channels, vae.latent_dim, vae.output_channels = params.latent_channels, 2, 3
    vae.process_output = to_unit
    vae.working_dtypes = [mm.torch.bfloat16, mm.torch.float32]  # in fp16 it can overflow, to black
    # The widest place is the stage of full size: a residual block's input, its normalised or activated copy, and the
    # two convolutions' outputs, and the shortcut of the upsampling before it, twice as wide as the stage: 6 C a pixel.
    # Never 0, which hosts divide by: an empty latent shall get as far as its own error.
    encode, decode = (6 * c[0] for c in (params.encoder_block_out_channels, params.decoder_block_out_channels))
    vae.memory_used_encode = lambda shape, dtype: max(1, encode * shape[2] * shape[3] * mm.dtype_size(dtype))
    vae.memory_used_decode = lambda shape, dtype: max(
        1, decode * shape[2] * shape[3] * params.compression**2 * mm.dtype_size(dtype))

    vae.device = mm.vae_device()
    vae.vae_dtype = mm.vae_dtype(vae.device, vae.working_dtypes)
    vae.output_device = mm.intermediate_device()
    model = HostDCAE(params, device=None, dtype=None, operations=comfy.ops.disable_weight_init).eval()
    vae.first_stage_model = model.to(vae.vae_dtype)
    if hasattr(mm, "archive_model_dtypes"):  # dynamic patchers read what each weight is to become
        mm.archive_model_dtypes(model)
    vae.patcher = model_patcher(model, vae.device, mm.vae_offload_device(), disable_dynamic)
    model.load_state_dict(state_dict, **assign_keywords(vae.patcher, model.load_state_dict))
    vae.size = None
    vae.model_size()
    return vae


def _patcher(path, disable_dynamic=False):
    return load_dcae(path, disable_dynamic).patcher


def _unwrapped(mapping: dict) -> dict:
    """The VAE's part of a whole checkpoint; anything else as it is."""
    part = {key[len(WRAPPING):]: value for key, value in mapping.items() if key.startswith(WRAPPING)}
    return part or mapping


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
