"""The middle of Sana's Mix-FFN (GLUMBConv): what lies between its two 1x1 convolutions.

Source: arXiv 2410.10629, section 2.2; the order of activation, convolution and gate is that of the
released code (SiLU before the 3x3, none after it, SiLU on the gate).
"""

import torch.nn.functional as F


def gated_depthwise(x, conv, height, width):
    """SiLU, depthwise 3x3 over the picture, then value * SiLU(gate).

    x (B, N, 2*hidden), N = height * width tokens row by row, value channels first, gate channels last.
    conv: the depthwise layer, (B, 2*hidden, height, width) -> same shape. It is a layer, not a pair of
    tensors, because a host's layer casts, moves and patches its weights when called.
    Returns (B, N, hidden) in x's dtype.
    """
    x = F.silu(x).unflatten(1, (height, width)).permute(0, 3, 1, 2)  # channels-last in memory: no copy
    x = conv(x).permute(0, 2, 3, 1).flatten(1, 2)
    value, gate = x.chunk(2, dim=-1)
    return value * F.silu(gate)
