"""The middle of Sana's Mix-FFN (GLUMBConv): what lies between its two 1x1 convolutions.

Source: arXiv 2410.10629, section 2.2; the order of activation, convolution and gate is that of the
released code (SiLU before the 3x3, none after it, SiLU on the gate).
"""

import functools

import torch
import torch.nn.functional as F

from . import dispatch, register


def gated_depthwise(x, conv, height, width):
    """SiLU, depthwise 3x3 over the picture, then value * SiLU(gate).

    x (B, N, 2*hidden), N = height * width tokens row by row, value channels first, gate channels last.
    conv: the depthwise layer, (B, 2*hidden, height, width) -> same shape. It is a layer, not a pair of
    tensors, because a host's layer casts, moves and patches its weights when called. One of the class `gating(...)`
    does all three steps in one pass where a kernel can run.
    Returns (B, N, hidden) in x's dtype. Without gradients x is overwritten: on a CPU fresh memory costs more than SiLU.
    """
    if isinstance(conv, Gating) and dispatch.fusible(x, compiled=True):
        x = x.unflatten(1, (height, width)).unflatten(-1, (2, -1)).permute(0, 3, 4, 1, 2)
        return conv(x).permute(0, 2, 3, 1).flatten(1, 2)
    overwrite = not torch.is_grad_enabled()
    x = F.silu(x, inplace=overwrite).unflatten(1, (height, width)).permute(0, 3, 1, 2)  # channels-last: no copy
    x = conv(x).permute(0, 2, 3, 1).flatten(1, 2)
    value, gate = x.chunk(2, dim=-1)
    gate = F.silu(gate)
    return gate.mul_(value) if overwrite else value * gate


class Gating:
    """Marks the layers of `gating`."""


@functools.cache
def gating(conv2d):
    """A namespace's Conv2d, 3x3, depthwise and with a bias, that also takes (B, 2, hidden, H, W), value and gate apart, and then does
    SiLU, convolution and gate at once -> (B, hidden, H, W). Any other input gets the plain convolution: other code may
    stand around the layer.

    Overridden where the layer computes, after it has cast, moved or patched its weights as it likes.
    """

    class GatingConv2d(Gating, conv2d):
        def _conv_forward(self, x, weight, bias, *args, **kwargs):
            if x.ndim == 5:
                if dispatch.fusible(x, weight, bias, compiled=True):
                    return dispatch.run("gated_depthwise", x, weight, bias)
                return eager(x, weight, bias)
            return super()._conv_forward(x, weight, bias, *args, **kwargs)

    return GatingConv2d


def eager(x, weight, bias):
    """x (B, 2, hidden, H, W), weight (2*hidden, 1, 3, 3), bias (2*hidden,) -> (B, hidden, H, W)."""
    x = F.conv2d(F.silu(x).flatten(1, 2), weight, bias, padding=1, groups=weight.shape[0])
    value, gate = x.chunk(2, dim=1)
    return value * F.silu(gate)


def channels_last_eager(x, weight, bias):
    return eager(x, weight, bias).contiguous(memory_format=torch.channels_last)


register.add_eager("gated_depthwise", channels_last_eager)
