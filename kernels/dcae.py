"""DC-AE's upsampling: nearest neighbour, twice the size, then a 3x3 convolution, without the large picture between; and
the shortcuts of both directions, without the tensors between.

Of the nine taps on an enlarged picture several fall on the same small pixel. For each of the four places (row parity,
column parity) in a 2x2 patch the nine add up to a 2x2 convolution of the small picture: 16 products in place of 36.
"""

import torch
import torch.nn.functional as F

from .large_conv import conv2d


def upsample_conv(x, weight, bias=None):
    """conv2d(interpolate(x, 2, nearest), weight, bias, padding=1).

    x (B, C, H, W), weight (O, C, 3, 3), bias (O,) -> (B, O, 2*H, 2*W) in x's dtype, channels-last in memory.
    Equal to the two steps but for the order of the sums; differentiable.
    """
    batch, _, height, width = x.shape
    out = x.new_empty(batch, 2 * height, 2 * width, weight.shape[0]).permute(0, 3, 1, 2)
    for i, rows in enumerate(_fold(weight, 2)):
        for j, kernel in enumerate(_fold(rows, 3)):
            # One pixel of padding on every side; each place looks at two sides only.
            phase = conv2d(x, kernel, bias, padding=(1, 1))
            out[:, :, i::2, j::2] = phase[:, :, i:i + height, j:j + width]
    return out


def _fold(weight, dim):
    """The taps of even and of odd places along a dimension: [w0, w1 + w2] and [w0 + w1, w2]."""
    a, b, c = weight.unbind(dim)
    return torch.stack([a, b + c], dim), torch.stack([a + b, c], dim)


def add_channels_to_space(out, x):
    """out + pixel_shuffle(x, 2), the channels of x first repeated until they suffice. out is overwritten.

    out (B, O, 2*H, 2*W), x (B, C, H, W), C a divisor of 4 * O. Returns as out.
    """
    repeats = 4 * out.shape[1] // x.shape[1]
    if 4 % repeats:
        return out.add_(F.pixel_shuffle(x.repeat_interleave(repeats, dim=1), 2))
    for place in range(4):  # of a 2x2 patch: channel 4 * o + place of the repeated x, every so many channels of x itself
        out[:, :, place // 2 :: 2, place % 2 :: 2].add_(x[:, place // repeats :: 4 // repeats])
    return out


def add_space_to_channels(out, x):
    """out + pixel_unshuffle(x, 2), of whose channels neighbours are averaged until they are as many. out is overwritten.

    out (B, O, H, W), x (B, C, 2*H, 2*W), O a divisor of 4 * C. Returns as out.
    """
    group = 4 * x.shape[1] // out.shape[1]
    if 4 % group:
        return out.add_(F.pixel_unshuffle(x, 2).unflatten(1, (-1, group)).mean(dim=2))
    for place in range(4):
        out[:, place // group :: 4 // group].add_(x[:, :, place // 2 :: 2, place % 2 :: 2], alpha=1 / group)
    return out
