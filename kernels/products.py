"""Matrix products in fp32 on a CPU, by the faster of PyTorch's two libraries.

F.linear goes to MKL, which on an AMD processor reaches nine tenths of the speed that oneDNN has there.
"""

import functools

import torch
from torch.overrides import TorchFunctionMode

from . import dispatch, processor


class OneDNN(TorchFunctionMode):
    """F.linear by oneDNN, where input, weight and bias are plain fp32 on the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch._C._nn.linear and not kwargs and all(t is None or plain(t) for t in args):
            x, weight, bias = (*args, None)[:3]
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return function(*args, **(kwargs or {}))


def plain(tensor):
    return type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def takes(*tensors):
    """Whether oneDNN may be called for these, None among them: plain fp32 on the CPU. The compiler chooses by itself, and what
    is called here has neither gradients nor tangents."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or dispatch.has_tangents():
        return False
    there = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    return there and all(t is None or plain(t) for t in tensors)


def fastest(operations):
    """The same namespace of layers; on an AMD processor with a Linear that has the faster product."""
    return Layers(operations) if processor.is_amd() and torch.backends.mkldnn.is_available() else operations


class Layers:
    """A namespace with another Linear."""

    def __init__(self, operations):
        self._operations = operations
        self.Linear = multiplying(operations.Linear)

    def __getattr__(self, name):
        return getattr(self._operations, name)


@functools.cache
def multiplying(linear):
    """A namespace's Linear, whose forward may cast, move and patch its weights as it likes before it multiplies."""

    class FastLinear(linear):
        def forward(self, x, *args, **kwargs):
            if not takes(x):
                return super().forward(x, *args, **kwargs)
            with OneDNN():
                return super().forward(x, *args, **kwargs)

    return FastLinear
