"""Convolutions over time in fp32 on a CPU, by oneDNN.

PyTorch (2.11) keeps small ones from it, those of a single clip with channels x frames x height up to 20,480: its own path then
takes five times as long, and memory for every tap.
"""

import functools

import torch

from .products import takes


@functools.cache
def quick(conv3d):
    """A namespace's Conv3d of stride 1, which may cast, move and patch its weights as it likes before it convolves."""

    class QuickConv3d(conv3d):
        def _conv_forward(self, x, weight, bias, *more, **named):
            if takes(x, weight, bias) and not any(given is not None for given in (*more, *named.values())):
                return torch.ops.aten.mkldnn_convolution(x, weight, bias, list(self.padding), [1, 1, 1], [1, 1, 1], 1)
            return super()._conv_forward(x, weight, bias, *more, **named)

    return QuickConv3d
