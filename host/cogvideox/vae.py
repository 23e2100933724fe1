"""The CogVideoX autoencoder as a native VAE of the host."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path

import comfy.model_management as mm
import comfy.ops
import comfy.sd
import torch

from ...cogvideo_core import autoencoder as core
from ...cogvideo_core.autoencoder import CogVideoVAE, Tiles
from ...cogvideo_core.checkpoint import autoencoder_to_canonical
from ...cogvideo_core.config import CogVideoVAEParams, identify_autoencoder
from ...cogvideo_core.lookalikes import strip_autoencoder_prefix
from ...cogvideo_core.memory import decode_bytes, encode_bytes
from ...kernels.state_dict import check_state_dict
from ...kernels.stated_config import INSIDE, read_config_tensor
from ...storage.checkpoints import open_checkpoint
from ..compat import on_device, vae_output_dtype
from ..files import is_pipeline
from ..loading import report
from ..memory import at_best, check_fits
from ..native_vae import native_vae, progress, watch_vae

CONFIG_KEY = "cogvideox_vae_config"  # JSON as uint8, in files saved from here whose tensors do not tell everything
PIXELS = core.SPATIAL                # px a side of one latent pixel
IMAGE_BYTES = 3 * 4                  # of one pixel of an IMAGE
CLIPS = ("auto", "whole", "chunks")  # how clips are cut in time: as the authors do where it fits, always, as diffusers does


class HostCogVideoVAE(CogVideoVAE):
    """The autoencoder with progress, and with the host's rule for the length: t latents are 4 t - 3 frames. whole: how the next
    clip is cut in time, for the host's code hands no such thing on."""

    whole = False

    def encode(self, x, tiles: Tiles | None = None):
        with _progress(self.encoder, core.encode_chunks(x.shape[2], self.whole), x.shape[3] // PIXELS,
                       x.shape[4] // PIXELS, tiles):
            return super().encode(x, tiles, self.whole)

    def decode(self, z, tiles: Tiles | None = None):
        with _progress(self.decoder, core.decode_chunks(z.shape[2], self.whole), *z.shape[3:], tiles):
            frames = super().decode(z, tiles, self.whole)
        # Of an even number of latents the first becomes four frames, though it was encoded from one. The last of the
        # four is where that one was; so 5, 13, 21, ... frames come back as many and in time.
        return frames if z.shape[2] % 2 else frames[:, :, 3:]


class CogVideoXVAE(comfy.sd.VAE):
    """The host's VAE with the tiles made by the autoencoder.

    A subclass, because the host's own tiles may cut time, where this autoencoder keeps a history, and take every tile
    for 4 t - 3 frames. Every version of the host calls the methods below from its tiled nodes and when memory ran out.

    clips: of CLIPS. What runs when memory ran out takes chunks, but for "whole". What newer nodes hand on besides says nothing here.
    """

    clips = "auto"

    def decode(self, samples_in, *args, **kwargs):
        """Latents (B, 16, t, h, w) -> frames (B, 4 t - 3, 8 h, 8 w, 3) in [0, 1]. Raises ValueError."""
        check_latent(samples_in, self.latent_channels)
        self._choose(samples_in.shape, core.decode_chunks, decode_bytes, None)
        if self._decode_bytes(samples_in.shape, None) > mm.get_total_memory(self.device):
            logging.warning("Frames of %d x %d px do not fit at once: decoding them in tiles.",
                            samples_in.shape[4] * PIXELS, samples_in.shape[3] * PIXELS)
            return self.decode_in_tiles(samples_in, Tiles())
        self._check_decode_fits(samples_in.shape, None)
        return super().decode(samples_in, *args, **kwargs)

    def decode_in_tiles(self, samples, tiles: Tiles):
        """As `decode`, in pieces of that size where the frame is larger."""
        check_latent(samples, self.latent_channels)
        tiles = fitted(tiles, *samples.shape[3:])
        self._choose(samples.shape, core.decode_chunks, decode_bytes, tiles)
        self._check_decode_fits(samples.shape, tiles)
        mm.load_models_gpu([self.patcher], memory_required=self._decode_bytes(samples.shape, tiles),
                           force_full_load=self.disable_offload)
        with on_device(self.device):
            return self._decode(samples, tiles).movedim(1, -1)

    def decode_tiled(self, samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None, **_):
        """What the host's tiled node calls. Sizes in latents; time is not cut, whatever tile_t and overlap_t say."""
        return self.decode_in_tiles(samples, tiles_of(tile_x, tile_y, overlap))

    def decode_tiled_3d(self, samples, tile_t=None, tile_x=None, tile_y=None, overlap=(1, None, None)):
        """What the host calls when memory ran out. Newer hosts (0.31) ask for tiles by their own estimate, of what has just failed:
        none is larger than ours."""
        self.first_stage_model.whole = self.clips == "whole"
        most = Tiles()
        tiles = tiles_of(min(tile_x or most.width, most.width), min(tile_y or most.height, most.height), overlap[-1])
        return self._decode(samples, fitted(tiles, *samples.shape[3:]))

    def encode(self, pixel_samples, clips=None, **_):
        """A clip (T, H, W, 3) in [0, 1] -> latents (1, 16, (T + 3) // 4, H/8, W/8). What is over 4 n + 1 frames and
        multiples of 8 px is left out. clips: of CLIPS, in place of the VAE's own. Raises ValueError."""
        clip = whole_clip(pixel_samples)
        self._choose((1, 3, *clip.shape[:3]), core.encode_chunks, encode_bytes, None, clips)
        if self._encode_bytes((1, 3, *clip.shape[:3]), None) > mm.get_total_memory(self.device):
            logging.warning("Frames of %d x %d px do not fit at once: encoding them in tiles.", clip.shape[2], clip.shape[1])
            return self.encode_in_tiles(clip, Tiles(), clips)
        self._check_encode_fits(clip.shape, None)
        return super().encode(clip)

    def encode_in_tiles(self, pixel_samples, tiles: Tiles, clips=None):
        """As `encode`, in pieces of that size where the frame is larger."""
        clip = self.vae_encode_crop_pixels(whole_clip(pixel_samples))
        tiles = fitted(tiles, clip.shape[1] // PIXELS, clip.shape[2] // PIXELS)
        self._choose((1, 3, *clip.shape[:3]), core.encode_chunks, encode_bytes, tiles, clips)
        self._check_encode_fits(clip.shape, tiles)
        clip = clip.movedim(-1, 0).unsqueeze(0)
        mm.load_models_gpu([self.patcher], memory_required=self._encode_bytes(clip.shape, tiles),
                           force_full_load=self.disable_offload)
        with on_device(self.device):
            return self._encode(clip, tiles)

    def encode_tiled(self, pixel_samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None, **_):
        """What the host's tiled node calls. Sizes in pixels; time is not cut, whatever tile_t and overlap_t say."""
        return self.encode_in_tiles(pixel_samples, tiles_of(tile_x, tile_y, overlap, PIXELS))

    def encode_tiled_3d(self, samples, tile_t=None, tile_x=None, tile_y=None, overlap=(1, None, None)):
        """What the host calls when memory ran out."""
        self.first_stage_model.whole = self.clips == "whole"
        tiles = tiles_of(tile_x, tile_y, overlap[-1], PIXELS)
        return self._encode(samples, fitted(tiles, samples.shape[3] // PIXELS, samples.shape[4] // PIXELS))

    def get_sd(self):
        """The tensors to save; where they do not tell the configuration, with it."""
        state_dict, params = super().get_sd(), self.first_stage_model.params
        released = CogVideoVAEParams()
        if any(getattr(params, name) != getattr(released, name)
               for name in ("norm_num_groups", "norm_eps", "temporal_compression_ratio")):
            text = json.dumps(asdict(params)).encode()
            state_dict = state_dict | {CONFIG_KEY: torch.frombuffer(bytearray(text), dtype=torch.uint8)}
        return state_dict

    def _decode(self, samples, tiles):
        """Clip by clip, so that memory does not grow with the batch. -> (B, 3, T, H, W) in [0, 1]."""
        return one_by_one(samples, lambda z: self.process_output(
            self.first_stage_model.decode(z.to(self.vae_dtype).to(self.device), tiles)
            .to(self.output_device).to(vae_output_dtype(self))))

    def _encode(self, clips, tiles):
        return one_by_one(clips, lambda x: self.first_stage_model.encode(
            self.process_input(x).to(self.vae_dtype).to(self.device), tiles)
            .to(self.output_device).to(vae_output_dtype(self)))

    def _choose(self, shape, pieces, bytes_of, tiles, clips=None):
        """Whether the next clip is cut as the authors do. shape (B, C, T, ...); pieces, bytes_of: of the direction."""
        clips, model = clips or self.clips, self.first_stage_model
        model.whole = clips != "chunks"
        if pieces(shape[2], True) == pieces(shape[2], False):
            return
        needed, there = bytes_of(model.params, shape, mm.dtype_size(self.vae_dtype), tiles, True), at_best(self.device)
        if clips == "auto" and needed > there:
            model.whole = False
            logging.warning("CogVideoX VAE: this clip is cut into %d chunks of time, which changes it a little: as in training it "
                            "would take %.1f GiB, %.1f are there.", len(pieces(shape[2], False)), needed / 2**30, there / 2**30)
        else:
            logging.info("CogVideoX VAE: this clip is cut %s.", "as in training" if model.whole else "into chunks of time")

    def _decode_bytes(self, shape, tiles):
        model = self.first_stage_model
        return decode_bytes(model.params, shape, mm.dtype_size(self.vae_dtype), tiles, model.whole)

    def _encode_bytes(self, shape, tiles):
        model = self.first_stage_model
        return encode_bytes(model.params, shape, mm.dtype_size(self.vae_dtype), tiles, model.whole)

    def _check_decode_fits(self, shape, tiles):
        frames, height, width = core.decoded_length(shape[2]), shape[3] * PIXELS, shape[4] * PIXELS
        what, advice = f"Decoding {frames} frames of {width} x {height} px", "Decode fewer or smaller frames."
        check_fits(self._decode_bytes(shape, tiles), self.device, what, advice)
        check_fits(shape[0] * frames * height * width * IMAGE_BYTES, torch.device("cpu"), what, advice)

    def _check_encode_fits(self, shape, tiles):
        frames, height, width, _ = shape
        what, advice = f"Encoding {frames} frames of {width} x {height} px", "Encode fewer or smaller frames."
        network, image = self._encode_bytes((1, 3, frames, height, width), tiles), frames * height * width * IMAGE_BYTES
        # A CPU has the clip twice: as it came, and in [-1, 1], of which half is made before the whole.
        check_fits(max(network + image, 3 * image) if mm.is_device_cpu(self.device) else network, self.device, what, advice)
        check_fits(3 * image, torch.device("cpu"), what, advice)


def one_by_one(batch, function):
    """function of each member of a batch (B, ...), kept as a batch; no copy is made when there is one."""
    first = function(batch[:1])
    if len(batch) == 1:
        return first
    out = first.new_empty(len(batch), *first.shape[1:])
    out[:1] = first
    for i in range(1, len(batch)):
        out[i : i + 1] = function(batch[i : i + 1])
    return out


def check_latent(z, channels: int) -> None:
    """Raise ValueError for a latent that CogVideoX' autoencoder cannot decode."""
    shape = " x ".join(map(str, z.shape))
    if z.ndim != 5 or z.shape[1] != channels:
        raise ValueError(f"This latent is of another model: it is {shape}, CogVideoX' are batch x {channels} x frames/4 x "
                         f"height/{PIXELS} x width/{PIXELS}. Decode it with its own VAE.")
    if 0 in z.shape:
        raise ValueError(f"This latent is empty: {shape}. Batch, frames and sides must be at least 1.")
    if not z.isfinite().all():
        raise ValueError("This latent holds NaN or infinite numbers, from an earlier node: there is no clip in it.")


def whole_clip(pixels):
    """An IMAGE (T, H, W, C) cut to 4 n + 1 frames, from the end, with a line in the log, and to 3 colours. Raises
    ValueError when too little is there."""
    shape = tuple(pixels.shape)
    if len(shape) != 4 or 0 in shape or min(shape[1:3]) < PIXELS or shape[3] < 3:
        raise ValueError(f"This clip cannot be encoded: it is {' x '.join(map(str, shape))}, expected frames x height x "
                         f"width x 3 colours, at least 1 frame of {PIXELS} x {PIXELS} px.")
    kept = (shape[0] - 1) // 4 * 4 + 1
    if kept < shape[0]:
        logging.info("CogVideoX encodes 4 n + 1 frames: the last %d of %d are left out.", shape[0] - kept, shape[0])
    return pixels[:kept, :, :, :3]


def fitted(tiles: Tiles, height: int, width: int) -> Tiles:
    """`tiles` for a frame of that many latents: along a side that needs only one, nothing overlaps. (diffusers would
    do a strip at its end twice.)"""
    tall, wide = height > tiles.height, width > tiles.width
    return Tiles(tiles.height if tall else height, tiles.width if wide else width,
                 tiles.overlap_height if tall else 0, tiles.overlap_width if wide else 0)


def tiles_of(width, height, overlap, unit: int = 1) -> Tiles:
    """Tiles of what the host asks for, in units of latents / unit; None is the default. Raises ValueError."""
    default = Tiles()
    return Tiles(default.height if height is None else height // unit, default.width if width is None else width // unit,
                 default.overlap_height if overlap is None else overlap // unit,
                 default.overlap_width if overlap is None else overlap // unit)


def decode_frames(vae, samples, tile_width: int, tile_height: int):
    """Latents (B, 16, t, h, w) -> IMAGE (B * (4 t - 3), 8 h, 8 w, 3), clip after clip.

    tile_width, tile_height: pixels, multiples of 8; they overlap by a fifth and a sixth, as diffusers' do. 0: the whole
    side at once. Raises ValueError for another VAE, another model's latent, and what cannot fit.
    """
    if not isinstance(vae, CogVideoXVAE):
        raise ValueError("This VAE is of another model, or from another loader: load it with Load CogVideoX VAE, or decode "
                         "with VAE Decode.")
    for name, size in (("tile_width", tile_width), ("tile_height", tile_height)):
        if size < 0 or size % PIXELS:
            raise ValueError(f"{name} is {size}: it must be a multiple of {PIXELS}, or 0 for the whole frame.")
    check_latent(samples, vae.latent_channels)
    if tile_width or tile_height:
        high, wide = tile_height // PIXELS or samples.shape[3], tile_width // PIXELS or samples.shape[4]
        frames = vae.decode_in_tiles(samples, Tiles(high, wide, high // 6, wide // 5))
    else:
        frames = vae.decode(samples)
    return frames.reshape(-1, *frames.shape[-3:])


def load_cogvideox_vae(path, clips: str = "auto", disable_dynamic: bool = False) -> CogVideoXVAE:
    """File or diffusers pipeline -> VAE. clips: of CLIPS. Raises ValueError, naming what the file is instead."""
    path = Path(path)
    if clips not in CLIPS:
        raise ValueError(f"clips is {clips!r}: choose one of {', '.join(CLIPS)}.")
    look = partial(open_checkpoint, path, **({"subfolder": "vae"} if is_pipeline(path) else {}))
    checkpoint = look()
    shapes, config, place = strip_autoencoder_prefix(checkpoint.shapes), checkpoint.config, checkpoint.config_place
    state_dict = None
    if CONFIG_KEY in shapes:
        state_dict = strip_autoencoder_prefix(checkpoint.load())
        config, place = read_config_tensor(state_dict.pop(CONFIG_KEY), CONFIG_KEY, f"{path.name}: "), INSIDE
        shapes = {key: shape for key, shape in shapes.items() if key != CONFIG_KEY}
    identity = identify_autoencoder(shapes, config, str(path), place)
    check_state_dict(shapes, lambda tensors: autoencoder_to_canonical(tensors, identity.layout),
                     lambda: CogVideoVAE(identity.params, device="meta"), identity.variant, path.name)
    report(path, identity)
    state_dict = autoencoder_to_canonical(checkpoint.load() if state_dict is None else state_dict, identity.layout)
    vae = cogvideox_vae(identity.params, state_dict, disable_dynamic)
    watch_vae(vae, path.name, lambda: autoencoder_to_canonical(
        {key: t for key, t in strip_autoencoder_prefix(look().load()).items() if key != CONFIG_KEY}, identity.layout))
    vae.patcher.cached_patcher_init = (_patcher, (path, clips))
    vae.clips = clips
    return vae


def cogvideox_vae(params: CogVideoVAEParams, state_dict: dict, disable_dynamic: bool = False) -> CogVideoXVAE:
    """The host's VAE around CogVideoX' autoencoder. state_dict: canonical names, complete."""
    model = HostCogVideoVAE(params, device=None, dtype=None, operations=comfy.ops.disable_weight_init)
    # The 2B comes in fp16, all others in bf16, with the same autoencoder.
    vae = native_vae(model, state_dict, [torch.bfloat16, torch.float16, torch.float32], CogVideoXVAE, disable_dynamic)
    vae.downscale_ratio = (lambda frames: max(0, (frames + 3) // 4), PIXELS, PIXELS)
    vae.upscale_ratio = (lambda latents: max(0, 4 * latents - 3), PIXELS, PIXELS)
    vae.downscale_index_formula = vae.upscale_index_formula = (4, PIXELS, PIXELS)
    vae.latent_channels, vae.latent_dim, vae.output_channels = params.latent_channels, 3, 3

    def memory_used_decode(shape, dtype):
        # The frames once more: chunk by chunk, and joined.
        joined = core.decoded_length(shape[2]) * shape[3] * shape[4] * PIXELS**2 * 3
        return decode_bytes(params, shape, mm.dtype_size(dtype), None, model.whole) + joined * mm.dtype_size(dtype)

    vae.memory_used_decode = memory_used_decode
    vae.memory_used_encode = lambda shape, dtype: encode_bytes(params, shape, mm.dtype_size(dtype), None, model.whole)
    return vae


def _progress(network, chunks, height, width, tiles):
    """A bar of the host over chunks and tiles. Sizes in latents."""
    if tiles is None or (height <= tiles.height and width <= tiles.width):
        return progress(network, len(chunks))
    return progress(network, len(chunks) * len(range(0, height, tiles.height - tiles.overlap_height))
                    * len(range(0, width, tiles.width - tiles.overlap_width)))


def _patcher(path, clips, disable_dynamic=False):
    return load_cogvideox_vae(path, clips, disable_dynamic).patcher
