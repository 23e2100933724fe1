"""A mask of a video as one of its latent: of the frames that share a latent cell, and of its 8 x 8 pixels, none may be left
out."""

from __future__ import annotations

import torch.nn.functional as F

from .conditioning import first_frames, in_any_frame
from .model import FRAMES, PIXELS
from .sampling import LATENT_CHANNELS
from .vae import check_latent


def masked(latent: dict, mask):
    """LATENT (B, 16, T, h, w) with a noise mask of its own cells, 1 where it is drawn anew.

    mask: MASK (H, W) or (M, H, W) in [0, 1], drawn where it is 0.5 or more; one for all frames, or one for each of the 4 T -
    3 frames, of which more are left out as the VAE leaves them. Raises ValueError for a mask of fewer frames and for one
    that is empty.
    """
    samples = latent["samples"]
    check_latent(samples, LATENT_CHANNELS)
    length, size = samples.shape[2], samples.shape[3:]
    mask = mask.reshape(-1, *mask.shape[-2:])
    if len(mask) > 1:
        mask = in_any_frame(first_frames(mask, FRAMES * length - 3, "mask"))[::FRAMES]
    drawn = (mask >= 0.5).float()
    if not drawn.any():
        raise ValueError("The mask is empty, so that nothing is to be drawn. Paint on it, or invert it: white is what the "
                         "model draws.")
    if mask.shape[-2] < size[0] or mask.shape[-1] < size[1]:  # a small one, such as the 64 x 64 where none was painted
        drawn = F.interpolate(drawn[:, None], [side * PIXELS for side in size], mode="nearest")[:, 0]
    cells = F.adaptive_max_pool2d(drawn[:, None], size).expand(length, -1, -1, -1)
    return {**latent, "noise_mask": cells.to(samples)}
