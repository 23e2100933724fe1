"""What memory CogVideoX' networks take beside their weights: the tensors that are alive at once, at the widest place.

Counted from the code and held against the resident set of a CPU (bench/memory.py). On a GPU the same tensors are alive,
and what the libraries take for themselves comes on top.
"""

from __future__ import annotations

from .autoencoder import SPATIAL, Tiles, decode_chunks, decoded_length, encode_chunks
from .config import CogVideoParams, CogVideoVAEParams


def numbers_a_latent_pixel(params: CogVideoParams) -> float:
    """Activations of a step in numbers for each pixel of the latent (B, 16, T, H, W).

    Widest is the feed-forward network: the input of the block, the residual behind its attention, the normalised copy of
    that, the inner layer of 4 D, which GELU overwrites, and the result: 8 D a token, and a token is patch_size^2 *
    patch_size_t pixels. The text's tokens, 226 of 17,776 in a video of 49 frames, are left out.
    """
    return 8 * params.width / (params.patch_size**2 * (params.patch_size_t or 1))


def decode_bytes(params: CogVideoVAEParams, shape, itemsize: int, tiles: Tiles | None = None,
                 whole: bool = False) -> int:
    """Least peak on the device while one clip of latents of `shape` (B, 16, t, h, w) is decoded: the network's, and the
    frames. itemsize: bytes of a number. tiles, whole: as for CogVideoVAE.decode.

    92 tensors of 128 channels of one full-size frame are alive in the last level's first block, which has 256 channels.
    A tile of 240 x 360 takes 1.9 GiB in 16 bits, 480 x 720 untiled 7.6 GiB. (diffusers: 3 times as much.)
    """
    frames, height, width = decoded_length(shape[2]), shape[3] * SPATIAL, shape[4] * SPATIAL
    at_once = max(4 * (end - start) if start else decoded_length(end) for start, end in decode_chunks(shape[2], whole))
    return _network_bytes(92, 6, params, at_once, height, width, itemsize, tiles) + frames * height * width * 3 * itemsize


def encode_bytes(params: CogVideoVAEParams, shape, itemsize: int, tiles: Tiles | None = None,
                 whole: bool = False) -> int:
    """Least peak on the device while one clip of `shape` (B, 3, T, H, W) is encoded: the network's, and the clip.

    64 tensors of 128 channels of one full-size frame are alive in the first level, of which 21 are the history. A tile
    of 240 x 360 takes 1.3 GiB in 16 bits, 480 x 720 untiled 5.3 GiB.
    """
    at_once = max(end - start for start, end in encode_chunks(shape[2], whole))
    return (_network_bytes(64, 5, params, at_once, *shape[3:], itemsize, tiles)
            + shape[2] * shape[3] * shape[4] * 3 * itemsize)


def _network_bytes(clip, still, params, frames, height, width, itemsize, tiles):
    """`clip` tensors of a full-size frame is for nine frames at once and for 128 channels. About a third of them is history,
    always two frames; the others grow with the frames. A single frame has no history: `still` tensors. Of the released
    model's live tensors, counted at 1 to 49 frames, this is 0.9 to 1.25 times as much. What a GPU's convolutions take for
    themselves comes on top."""
    if tiles is not None:
        height, width = min(height, tiles.height * SPATIAL), min(width, tiles.width * SPATIAL)
    tensors = still if frames == 1 else clip * (1 + 2 * frames / 9) / 3
    return int(tensors * params.block_out_channels[0] * height * width * itemsize)
