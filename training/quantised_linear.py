"""Frozen Linear layers whose weights are kept in 8 bits: turned back for every product, in the backward pass once more."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels.quant import dequantise


class QuantisedLinear(nn.Linear):
    """weight: int8 or fp8, no gradient; weight_scale; entry: the layer's in the checkpoint, see kernels/quant.py."""

    def __init__(self, like: nn.Linear, entry: dict):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.entry = like.in_features, like.out_features, entry
        kind = torch.int8 if entry["format"].startswith("int8") else torch.float8_e4m3fn
        rows = (like.out_features, 1) if kind == torch.int8 else ()
        self.weight = nn.Parameter(torch.empty(like.weight.shape, dtype=kind, device="meta"), requires_grad=False)
        self.register_buffer("weight_scale", torch.empty(rows, device="meta"))
        self.bias = None if like.bias is None else nn.Parameter(torch.empty_like(like.bias), requires_grad=False)

    def forward(self, x):
        if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y = _Product.apply(x, self.weight, self.weight_scale, self.entry)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Product(torch.autograd.Function):
    """x @ W.T. The backward pass keeps the 8 bits of W, not the matrix that was made of them."""

    @staticmethod
    def forward(ctx, x, weight, scale, entry):
        ctx.save_for_backward(weight, scale)
        ctx.entry = entry
        return F.linear(x, _matrix(weight, scale, entry, x.dtype))

    @staticmethod
    def backward(ctx, gradient):
        weight, scale = ctx.saved_tensors
        return gradient @ _matrix(weight, scale, ctx.entry, gradient.dtype), None, None, None


def _matrix(weight, scale, entry, dtype):
    return dequantise({"weight": weight, "weight_scale": scale}, entry).to(dtype)


def quantise_layers(network: nn.Module, layers: dict[str, dict]) -> None:
    """Put a QuantisedLinear in the place of each of these layers of a network on the meta device. layers: {name: entry}."""
    for name, entry in layers.items():
        parent, _, leaf = name.rpartition(".")
        holder = network.get_submodule(parent)
        new = QuantisedLinear(holder.get_submodule(leaf), entry)
        if isinstance(holder, nn.ModuleList):
            holder[int(leaf)] = new
        else:
            setattr(holder, leaf, new)
