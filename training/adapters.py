"""LoRA on a network: a low-rank change beside each of its chosen linear layers, in fp32, while the network itself is frozen.

The base may be kept in bf16 or in 8 bits. W + B A is never made: the layer's output gets scale * B (A x) added to it, by a
forward hook, so that names, hooks and sharding of the base are what they were.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable
from difflib import get_close_matches

import torch
import torch.nn.functional as F
from torch import nn

from ..kernels.quant import dequantise

# Names for what most people want; everything else is a layer's name, the end of one, or a pattern with *.
PRESETS = {
    "attention": ("*.to_q", "*.to_k", "*.to_v"),
    "attention+out": ("*.to_q", "*.to_k", "*.to_v", "*.to_out.0"),
    "all-linear": ("*.to_q", "*.to_k", "*.to_v", "*.to_out.0", "*.ff.*"),
}
BLOCKS = "transformer_blocks."


class Low(nn.Module):
    """The change of one layer (out, in): A (rank, in) drawn evenly, B (out, rank) zero, and for DoRA the rows' lengths."""

    def __init__(self, layer: nn.Linear, rank: int, alpha: float, dropout: float, dora: bool, generator):
        super().__init__()
        device = layer.weight.device
        bound = 1 / math.sqrt(layer.in_features)  # kaiming with a = sqrt(5), as in the authors' code and in PEFT
        drawn = torch.rand(rank, layer.in_features, generator=generator)
        self.A = nn.Parameter(((2 * drawn - 1) * bound).to(device))
        self.B = nn.Parameter(torch.zeros(layer.out_features, rank, device=device))
        self.scale, self.dropout = alpha / rank, dropout
        self.magnitude = nn.Parameter(matrix_of(layer).float().norm(dim=1)) if dora else None

    def forward(self, layer, x, out):
        kept = F.dropout(x, self.dropout, self.training) if self.dropout else x
        change = F.linear(F.linear(kept.to(self.A.dtype), self.A), self.B) * self.scale
        if self.magnitude is None:
            return out + change.to(out.dtype)
        bias = 0 if layer.bias is None else layer.bias.to(out.dtype)
        factor = (self.magnitude / self.lengths(layer)).to(out.dtype)
        return (out - bias + change.to(out.dtype)) * factor + bias

    @torch.no_grad()  # DoRA takes the lengths as constants (arXiv 2402.09353, section 4.3)
    def lengths(self, layer):
        """Of the rows of W + scale * B A, without making it."""
        W, A, B = matrix_of(layer).to(self.A.dtype), self.A, self.B * self.scale
        square = W.square().sum(1) + 2 * ((W @ A.T) * B).sum(1) + ((B @ (A @ A.T)) * B).sum(1)
        return square.clamp(min=1e-12).sqrt()


class Adapters(nn.Module):
    """The changes of a network's layers. `names`: the layers', in the network's order; `layers[i]`: of names[i]."""

    def __init__(self, names: list[str], layers: list[Low], rank: int, alpha: float):
        super().__init__()
        self.names, self.layers, self.rank, self.alpha = names, nn.ModuleList(layers), rank, alpha
        self._hooks: list = []

    def remove(self) -> None:
        """Give the network back as it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def add(network: nn.Module, rank: int, alpha: float, targets: Iterable[str], dropout: float = 0.0, dora: bool = False,
        generator: torch.Generator | None = None) -> Adapters:
    """Freeze `network` and put changes on the layers that `targets` names -> Adapters, whose parameters are to be trained.

    targets: names of PRESETS, of layers, ends of names ("attn1.to_q"), or patterns. Layers outside the blocks are named in full.
    Raises ValueError for a target that names no linear layer.
    """
    linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    names = chosen(linear, targets)
    network.requires_grad_(False)
    lows = [Low(linear[name], rank, alpha, dropout, dora, generator) for name in names]
    adapters = Adapters(names, lows, rank, alpha)
    for name, low in zip(names, lows):
        adapters._hooks.append(linear[name].register_forward_hook(
            lambda layer, args, out, low=low: low(layer, args[0], out)))
    return adapters


def chosen(names: Iterable[str], targets: Iterable[str]) -> list[str]:
    """Those of `names` that `targets` means, in their order. Raises ValueError for a target that means none."""
    names, wanted = list(names), set()
    for target in targets:
        found = [name for pattern in PRESETS.get(target, (target,)) for name in names if _matches(name, pattern)]
        if not found:
            ends = sorted({name.split(".", 2)[-1] for name in names if name.startswith(BLOCKS)})
            near = get_close_matches(target, [*PRESETS, *ends, *names], 3)
            raise ValueError(f"lora.targets: {target!r} names no linear layer of this network. "
                             + (f"Did you mean {' or '.join(near)}? " if near else "")
                             + f"Choose of {', '.join(PRESETS)}, or of the blocks' layers: {', '.join(ends)}.")
        wanted.update(found)
    return [name for name in names if name in wanted]


def matrix_of(layer: nn.Linear) -> torch.Tensor:
    """A layer's weight (out, in), turned back where it is kept in 8 bits."""
    entry = getattr(layer, "entry", None)
    return layer.weight if entry is None else dequantise({"weight": layer.weight, "weight_scale": layer.weight_scale}, entry)


def _matches(name: str, pattern: str) -> bool:
    if "*" in pattern:
        return name.startswith(BLOCKS) and fnmatch.fnmatchcase(name, pattern)
    return name == pattern or name.startswith(BLOCKS) and name.endswith("." + pattern)
