"""Convolutions of pictures with 2**31 numbers and more.

The libraries' kernels reckon places in 32 bits; beyond that a GPU's library refuses, or unfolds the picture into nine times
its memory. A strip of rows, with the rows around it that the kernel reaches, gives the same rows of the result.
DC-AE gets there at 4096 x 4096 px: 128 channels of full size are 2**31 numbers.
"""

import torch
import torch.nn.functional as F

LIMIT = 2**31 - 1  # numbers in a tensor
STRIPS = 8         # to a tensor of LIMIT numbers: what a strip takes is little beside what the whole takes


def conv2d(x, weight, bias=None, stride=(1, 1), padding=(0, 0), groups=1):
    """F.conv2d, in strips of rows where x or the result has more than LIMIT numbers; stride and padding are pairs.

    The same sums in either way; differentiable. The result of strips is channels-last in memory.
    """
    batch, _, height, width = x.shape
    reach = weight.shape[2]
    rows, columns = ((size + 2 * pad - kernel) // step + 1 for size, pad, kernel, step in
                     zip((height, width), padding, weight.shape[2:], stride))
    numbers = max(x.numel(), batch * weight.shape[0] * rows * columns)
    if numbers <= LIMIT:
        return F.conv2d(x, weight, bias, stride, padding, 1, groups)

    out = torch.empty((batch, weight.shape[0], rows, columns), dtype=x.dtype, device=x.device,
                      memory_format=torch.channels_last)
    strip = max(1, rows * LIMIT // (STRIPS * numbers))
    for start in range(0, rows, strip):
        end = min(start + strip, rows)
        first, last = start * stride[0] - padding[0], (end - 1) * stride[0] - padding[0] + reach
        piece = x[:, :, max(first, 0) : min(last, height)]
        if first < 0 or last > height:  # the whole's first and last rows alone are padded
            piece = F.pad(piece, (0, 0, max(-first, 0), max(last - height, 0)))
        out[:, :, start:end] = F.conv2d(piece, weight, bias, stride, (0, padding[1]), 1, groups)
    return out
