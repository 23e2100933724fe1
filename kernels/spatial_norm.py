"""What follows the group norm in the CogVideoX decoder: the latent's scale and shift at each place, then SiLU."""

import torch
import torch.nn.functional as F

from . import dispatch, register
from .latent_frames import latent_of_frame


def scale_shift_silu(x, scale, shift):
    """silu(x * scale + shift), x (B, C, T, H, W), scale and shift (B, C, t, h, w) enlarged to it, nearest neighbour.

    T, H and W are multiples of t, h and w; an odd T of more than one frame has a first frame that belongs to the first
    latent alone. Returns as x, which is overwritten.
    """
    if x.is_contiguous() and dispatch.fusible(x, scale, shift):
        return dispatch.run("scale_shift_silu", x, scale, shift)
    return eager(x, scale, shift)


def eager(x, scale, shift):
    T, W, (t, h, w) = x.shape[2], x.shape[4], scale.shape[2:]
    first, ratio = latent_of_frame(T, t)
    at = torch.arange(T, device=x.device)
    at = torch.where(at < first, 0, first + (at - first) // ratio)

    def spread(y):
        # Rows are not repeated but broadcast.
        return y[:, :, at].repeat_interleave(W // w, dim=4).unsqueeze(4)

    x.unflatten(3, (h, -1)).mul_(spread(scale)).add_(spread(shift))
    return F.silu(x, inplace=True)


register.add_eager("scale_shift_silu", eager)
