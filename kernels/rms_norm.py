"""DC-AE's norm: RMS over the channels of each pixel, and what follows it."""

import torch
import torch.nn.functional as F

from . import dispatch, register


def rms_norm(x, weight, bias, eps, residual=None, activation=None):
    """x / rms over channels * weight + bias, then + residual, then the activation.

    x and residual (B, C, H, W), weight and bias (C,) in x's dtype; activation "relu", "silu" or None. Returns as x;
    statistics in fp32. Without gradients x is overwritten.
    """
    if channels_last(x) and (residual is None or channels_last(residual) and residual.dtype == x.dtype):
        if dispatch.fusible(x, weight, bias, x if residual is None else residual):
            return dispatch.run("rms_norm", x, weight, bias, eps, residual, activation)
    return eager(x, weight, bias, eps, residual, activation)


def channels_last(x):
    return x.is_contiguous(memory_format=torch.channels_last)


def eager(x, weight, bias, eps, residual, activation):
    weight, bias = weight[:, None, None], bias[:, None, None]
    # The norm, unlike a mean of squares, is summed up in fp32 without an fp32 copy of x.
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
    scale = torch.rsqrt(norm.square() / x.shape[1] + eps)
    if torch.is_grad_enabled():
        x = torch.addcmul(bias, x * scale.to(x.dtype), weight)
        x = x if residual is None else x + residual
    else:  # nothing else reads x: in place, which on a CPU is three times as fast as fresh memory
        x = x.mul_(scale).mul_(weight).add_(bias)
        x = x if residual is None else x.add_(residual)
    return x if activation is None else getattr(F, activation)(x, inplace=not torch.is_grad_enabled())


register.add_eager("rms_norm", eager)
