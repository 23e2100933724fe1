"""What memory SANA-Video's networks take beside their weights; as memory.py, counted from the code."""

from __future__ import annotations

from .video_config import SanaVideo2Params


def numbers_a_latent_pixel(params, itemsize: int) -> int:
    """Numbers of `itemsize` bytes that a step has alive for each latent pixel; D width, h the inner width.

    A token: the stream and the normalised copy, 2 D; linear attention q, k and v, 3 D, and in fp32 the turned q and k, v and q for
    the products, and the result, 2 D each in 16 bits, of which four are alive. Or the feed-forward network: 3 D and, before and
    after the depthwise convolution, 2 h each. 2.0's has 3 D, its gate, its values and their product; and over depth it keeps a
    sum for each group of blocks, and a gate beside attention.
    """
    D, h = params.width, params.hidden
    attention = 5 * D + 4 * D * (4 // itemsize)
    if isinstance(params, SanaVideo2Params):
        kept = (-(-params.num_layers // params.depth_group) + 1) * D
        return max(attention + 2 * D, 3 * D + 3 * h) + kept
    return max(attention, 3 * D + 4 * h) // params.patch_size**2
