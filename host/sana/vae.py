"""DC-AE as a native VAE of the host."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import comfy.model_management as mm
import comfy.ops
import comfy.sd
import comfy.utils
import torch

from ...sana_core import exact_tiles
from ...sana_core.autoencoder import AutoencoderDC, DCAEParams
from ...sana_core.autoencoder_checkpoint import check_shapes, identify_autoencoder, to_canonical
from ...sana_core.memory import exact_bytes, picture_bytes
from ...sana_core.tiles import Tiles, blend
from ...storage.checkpoints import open_checkpoint
from ..compat import on_device, vae_output_dtype
from ..files import is_pipeline
from ..loading import report
from ..memory import at_best, check_fits
from ..native_vae import native_vae, progress, watch_vae
from .model import SanaLatent

IMAGE_BYTES = 3 * 4  # of one pixel of an IMAGE
SANAS = ("of Sana", "of Sana (1.0 or 1.1)")  # how the name of a variant that the tensors alone tell ends


class SanaVAE(comfy.sd.VAE):
    """The host's VAE with tiles made for DC-AE, whole pictures where they fit.

    Tiles are pieces that equal the whole (sana_core/exact_tiles.py); where the stages that see all of the picture do not fit
    either, they are blended (sana_core/tiles.py), and the log says so. A subclass, because the host's own tiles are 2048 px when
    memory ran out, made three times over in three shapes. Every version of the host calls the methods below from its tiled nodes
    and when memory ran out. What newer nodes hand on besides says nothing here.
    """

    def decode(self, samples_in, *args, **kwargs):
        """Latents (B, 32, h, w) -> pictures (B, 32 h, 32 w, 3) in [0, 1]. Raises ValueError."""
        check_latent(samples_in, self.latent_channels)
        if self.memory_used_decode(samples_in.shape, self.vae_dtype) > at_best(self.device):
            height, width = (side * self.upscale_ratio for side in samples_in.shape[2:])
            logging.warning("A picture of %d x %d px does not fit at once: decoding it in tiles.", width, height)
            return self.decode_in_tiles(samples_in, Tiles())
        self._check_pictures_fit(samples_in.shape)
        return super().decode(samples_in, *args, **kwargs)

    def decode_in_tiles(self, samples, tiles: Tiles):
        """As `decode`, in pieces of that size where the picture is larger."""
        check_latent(samples, self.latent_channels)
        self._check_pictures_fit(samples.shape)
        tile = (*samples.shape[:2], min(tiles.height, samples.shape[2]), min(tiles.width, samples.shape[3]))
        sides = [side * self.upscale_ratio for side in samples.shape[2:]]
        self._make_room(self._exact_bytes("decoder", *sides, tiles) or self.memory_used_decode(tile, self.vae_dtype))
        with on_device(self.device):
            return self._decode(samples, tiles).movedim(1, -1)

    def decode_tiled(self, samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None, **_):
        """What the host's tiled node calls. Sizes in latents."""
        return self.decode_in_tiles(samples, tiles_of(tile_x, tile_y, overlap))

    def decode_tiled_(self, samples, tile_x=None, tile_y=None, overlap=None):
        """What the host calls when memory ran out. -> (B, 3, 32 h, 32 w)."""
        return self._decode(samples, tiles_of(tile_x, tile_y, overlap))

    def encode(self, pixel_samples, **_):
        """Pictures (B, H, W, 3) in [0, 1] -> latents (B, 32, H/32, W/32). What is over multiples of 32 px is left out at the
        edges. Raises ValueError."""
        pictures = checked_pictures(pixel_samples, self.downscale_ratio)
        batch, height, width, _ = pictures.shape
        if self.memory_used_encode((batch, 3, height, width), self.vae_dtype) > at_best(self.device):
            logging.warning("A picture of %d x %d px does not fit at once: encoding it in tiles.", width, height)
            return self.encode_in_tiles(pictures, Tiles())
        return super().encode(pictures)

    def encode_in_tiles(self, pixel_samples, tiles: Tiles):
        """As `encode`, in pieces of that size where the picture is larger."""
        pictures = self.vae_encode_crop_pixels(checked_pictures(pixel_samples, self.downscale_ratio)).movedim(-1, 1)
        unit = self.downscale_ratio
        tile = (len(pictures), 3, min(unit * tiles.height, pictures.shape[2]), min(unit * tiles.width, pictures.shape[3]))
        self._make_room(self._exact_bytes("encoder", *pictures.shape[2:], tiles) or self.memory_used_encode(tile, self.vae_dtype))
        with on_device(self.device):
            return self._encode(pictures, tiles)

    def encode_tiled(self, pixel_samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None, **_):
        """What the host's tiled node calls. Sizes in pixels."""
        return self.encode_in_tiles(pixel_samples, tiles_of(tile_x, tile_y, overlap, self.downscale_ratio))

    def encode_tiled_(self, pixel_samples, tile_x=None, tile_y=None, overlap=None):
        """What the host calls when memory ran out, with pictures (B, 3, H, W) whose sides are multiples of 32."""
        return self._encode(pixel_samples, tiles_of(tile_x, tile_y, overlap, self.downscale_ratio))

    def _make_room(self, needed):
        mm.load_models_gpu([self.patcher], memory_required=needed, force_full_load=self.disable_offload)

    def _exact_bytes(self, side, height, width, tiles):
        """What pieces that equal the whole take on a picture of so many pixels, 0 where that does not fit."""
        needed = exact_bytes(self.first_stage_model.params, side, height, width, mm.dtype_size(self.vae_dtype),
                             mm.is_device_cpu(self.device), self._tile_pixels(tiles))
        return needed if needed <= at_best(self.device) else 0

    def _tile_pixels(self, tiles):
        return min(tiles.height, tiles.width) * self.upscale_ratio

    def _decode(self, samples, tiles):
        model = self.first_stage_model
        batch, _, height, width = samples.shape
        pictures = torch.empty(batch, self.output_channels, height * self.upscale_ratio, width * self.upscale_ratio,
                               dtype=vae_output_dtype(self), device=self.output_device)
        if self._exact_bytes("decoder", *pictures.shape[2:], tiles):
            self._exactly(model.decoder, model.decode_exactly, samples, pictures, tiles, lambda z: z)
        else:
            _say_blended(pictures)
            with progress(model.decoder, batch * tiles.count(height, width)):
                blend(lambda z: model.decode(z.to(self.vae_dtype).to(self.device)), samples, pictures, tiles)
        return self.process_output(pictures)

    def _encode(self, pictures, tiles):
        model = self.first_stage_model
        batch, _, height, width = pictures.shape
        latents = torch.empty(batch, self.latent_channels, height // self.downscale_ratio, width // self.downscale_ratio,
                              dtype=vae_output_dtype(self), device=self.output_device)
        if self._exact_bytes("encoder", height, width, tiles):
            return self._exactly(model.encoder, model.encode_exactly, pictures, latents, tiles, self.process_input)
        _say_blended(pictures)
        with progress(model.encoder, batch * tiles.count(*latents.shape[2:])):
            return blend(lambda x: model.encode(self.process_input(x).to(self.vae_dtype).to(self.device)),
                         pictures, latents, tiles)

    def _exactly(self, network, call, source, out, tiles, prepare):
        """call (decode_exactly or encode_exactly) picture by picture, with a bar of the host."""
        tile = self._tile_pixels(tiles)
        bar = comfy.utils.ProgressBar(len(source) * exact_tiles.count(network.parts(), *source.shape[2:], tile))
        for i in range(len(source)):
            call(prepare(source[i : i + 1]).to(self.vae_dtype).to(self.device), out[i : i + 1], tile, lambda: bar.update(1))
            self.first_results[network](out[i : i + 1])
        return out

    def _check_pictures_fit(self, shape):
        batch, _, height, width = shape
        height, width = height * self.upscale_ratio, width * self.upscale_ratio
        check_fits(batch * height * width * IMAGE_BYTES, torch.device("cpu"),
                   f"Decoding {batch} picture(s) of {width} x {height} px", "Decode fewer or smaller ones.")


def _say_blended(pictures) -> None:
    logging.warning("A picture of %d x %d px does not fit even in pieces that equal the whole: its tiles are blended.",
                    pictures.shape[3], pictures.shape[2])


def check_latent(z, channels: int) -> None:
    """Raise ValueError for a latent that DC-AE cannot decode."""
    shape = " x ".join(map(str, z.shape))
    if z.ndim != 4 or z.shape[1] != channels:
        raise ValueError(f"This latent is of another model: it is {shape}, DC-AE decodes batch x {channels} x height x "
                         f"width. Decode it with its own VAE.")
    if 0 in z.shape:
        raise ValueError(f"This latent is empty: {shape}.")
    if not z.isfinite().all():
        raise ValueError("This latent holds NaN or infinite numbers, from an earlier node: there is no picture in it.")


def checked_pictures(pixels, unit: int):
    """An IMAGE (B, H, W, C) without its transparency. Raises ValueError for one that DC-AE cannot encode."""
    shape = tuple(pixels.shape)
    if len(shape) != 4 or shape[0] == 0 or min(shape[1:3]) < unit or shape[3] < 3:
        raise ValueError(f"This picture cannot be encoded: it is {' x '.join(map(str, shape))}, expected batch x height x "
                         f"width x 3 colours, at least {unit} x {unit} px.")
    return pixels[..., :3]


def tiles_of(width, height, overlap, unit: int = 1) -> Tiles:
    """Tiles of what the host asks for, in units of latents / unit; None is the default."""
    default = Tiles()
    width = default.width if width is None else max(1, width // unit)
    height = default.height if height is None else max(1, height // unit)
    overlap = default.overlap if overlap is None else overlap // unit
    return Tiles(height, width, min(overlap, width // 2, height // 2))  # the host's nodes let any overlap through


def decode_pictures(vae, samples, tile_size: int, overlap: int):
    """Latents (B, 32, h, w) -> IMAGE. tile_size, overlap: in pixels, multiples of 32; tile_size 0 takes tiles, of 1024 px,
    only where the picture does not fit. Raises ValueError, for another VAE too."""
    check_vae(vae, "decode it with VAE Decode")
    tiles = requested_tiles(tile_size, overlap, vae.upscale_ratio)
    return vae.decode(samples) if tiles is None else vae.decode_in_tiles(samples, tiles)


def encode_pictures(vae, pixels, tile_size: int, overlap: int) -> dict:
    """IMAGE (B, H, W, 3) -> LATENT. tile_size, overlap: as in `decode_pictures`."""
    check_vae(vae, "encode with VAE Encode")
    tiles = requested_tiles(tile_size, overlap, vae.downscale_ratio)
    return {"samples": vae.encode(pixels) if tiles is None else vae.encode_in_tiles(pixels, tiles)}


def check_vae(vae, instead: str) -> None:
    if not isinstance(vae, SanaVAE):
        raise ValueError(f"This VAE is of another model, or from another loader: load it with Load DC-AE, or {instead}.")


def requested_tiles(tile_size: int, overlap: int, unit: int) -> Tiles | None:
    for name, size in (("tile_size", tile_size), ("overlap", overlap)):
        if size < 0 or size % unit:
            raise ValueError(f"{name} is {size}: it must be a multiple of {unit}, or 0.")
    if tile_size and 2 * overlap > tile_size:
        raise ValueError(f"overlap is {overlap}: it must be at most half of tile_size, which is {tile_size}.")
    return Tiles(tile_size // unit, tile_size // unit, overlap // unit) if tile_size else None


def load_dcae(path, disable_dynamic: bool = False):
    """File or diffusers pipeline -> VAE. Raises ValueError, naming what the file is instead."""
    path = Path(path)
    look = partial(open_checkpoint, path, **({"subfolder": "vae"} if is_pipeline(path) else {}))
    checkpoint = look()
    identity = identify_autoencoder(checkpoint.shapes, checkpoint.config, str(path), checkpoint.config_place)
    report(path, identity)
    check_sanas(identity, checkpoint.config, path.name)
    check_shapes(checkpoint.shapes, identity, path.name)
    vae = dcae(identity.params, to_canonical(checkpoint.load(), identity.layout), disable_dynamic)
    watch_vae(vae, path.name, lambda: to_canonical(look().load(), identity.layout))
    vae.patcher.cached_patcher_init = (_patcher, (path,))
    return vae


def check_sanas(identity, config: dict | None, name: str) -> None:
    """Raise ValueError for a DC-AE whose latents no Sana model can take; warn of one whose latents Sana reads wrongly."""
    params, sanas = identity.params, SanaLatent
    remedy = "Sana's is dc-ae-f32c32-sana-1.1, or 1.0, or a lite one of them."
    if (params.compression, params.latent_channels) != (sanas.spacial_downscale_ratio, sanas.latent_channels):
        raise ValueError(f"{name}: this is {identity.variant}, made for another model: its latents have {params.latent_channels} "
                         f"channels of {params.compression} x {params.compression} px, Sana's {sanas.latent_channels} of "
                         f"{sanas.spacial_downscale_ratio} x {sanas.spacial_downscale_ratio}. {remedy}")
    if not has_sanas_scale(params.scaling_factor):
        logging.warning("%s: this DC-AE was made for another model: its latents' scale is %g, Sana's is %g, and Sana's pictures "
                        "come out wrong. %s", name, params.scaling_factor, sanas.scale_factor, remedy)
    elif not identity.variant.endswith(SANAS) and "scaling_factor" not in (config or {}):
        logging.warning("%s: this DC-AE has another shape than Sana's, and nothing tells the scale of its latents: it may be "
                        "another model's (-in, -mix), and Sana's pictures come out wrong. %s", name, remedy)


def has_sanas_scale(scale: float) -> bool:
    return abs(scale / SanaLatent.scale_factor - 1) < 0.01


def dcae(params: DCAEParams, state_dict: dict, disable_dynamic: bool = False) -> comfy.sd.VAE:
    """The host's VAE around a DC-AE. state_dict: canonical names, complete."""
    model = AutoencoderDC(params, device=None, dtype=None, operations=comfy.ops.disable_weight_init)
    # In fp16 it can overflow, to black.
    vae = native_vae(model, state_dict, [torch.bfloat16, torch.float32], SanaVAE, disable_dynamic)
    vae.downscale_ratio = vae.upscale_ratio = params.compression
    vae.latent_channels, vae.latent_dim, vae.output_channels = params.latent_channels, 2, 3
    vae.latent_scale = params.scaling_factor
    vae.memory_used_encode = lambda shape, dtype: picture_bytes(
        params.encoder_block_out_channels[0], shape[2] * shape[3], mm.dtype_size(dtype), mm.is_device_cpu(vae.device))
    vae.memory_used_decode = lambda shape, dtype: picture_bytes(
        params.decoder_block_out_channels[0], shape[2] * shape[3] * params.compression**2, mm.dtype_size(dtype),
        mm.is_device_cpu(vae.device))
    return vae


def _patcher(path, disable_dynamic=False):
    return load_dcae(path, disable_dynamic).patcher
