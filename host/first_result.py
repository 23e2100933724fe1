"""Weights that hold NaN or infinity: found at a network's first result, and told by the name of the file.

Looking at all weights when they are loaded costs 10 % and more of the load, and where the host keeps them mapped it would
read the whole file for that alone; a look at one result costs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from ..storage.checkpoints import check_finite, is_finite
from . import step_cache
from .blocks import OVERRIDE, PLAIN, replaced_attention


class FirstResult:
    """Call it with what a network has computed. name: of the network's file. weights: reads {key: tensor} of it anew.

    The first result passes when it is finite. Otherwise every one raises ValueError as check_finite does, unless the weights
    are sound: then the log says so, once, and the inputs or the type of the weights are to blame.
    """

    def __init__(self, name: str, weights: Callable[[], dict[str, torch.Tensor]]):
        self.name, self.weights, self.passed = name, weights, False

    def __call__(self, result) -> None:
        if self.passed:
            return
        if not _finite(result):
            check_finite(self.weights(), self.name)
            logging.warning("%s: its first result holds NaN or infinite numbers, and its weights do not: what went in does, or a "
                            "weight_dtype of bf16 or fp32 is needed.", self.name)
        self.passed = True

    def watch(self, module: torch.nn.Module) -> None:
        """Look at the first result of `module`."""
        module.register_forward_hook(lambda module, inputs, result: self(result))

    def around_model(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
        """The same, as the host's wrapper of a diffusion model: outside of what may be compiled. Raises ValueError, too,
        when it is an attention in place of the host's own (SageAttention, for example) that overflows."""
        result = executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        if self.passed:
            return result
        attention = replaced_attention(transformer_options)
        if attention and not _finite(result):
            plain = {key: value for key, value in transformer_options.items() if key != step_cache.KEY} | {PLAIN: True}
            if _finite(executor(x, t, c_concat, c_crossattn, control, plain, **kwargs)):
                remedy = ("Take the node out that sets it" if OVERRIDE in transformer_options else
                          "Start ComfyUI without the option that chooses it (--use-sage-attention or the like)")
                raise ValueError(f"{self.name}: its first result holds NaN or infinite numbers with the attention of "
                                 f"{attention}, and none with PyTorch's own: that one overflows in {x.dtype} with "
                                 f"this model. {remedy}.")
        self(result)
        return result


def _finite(result) -> bool:
    return all(map(is_finite, _tensors(result)))


def _tensors(result):
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, (tuple, list)):
        for part in result:
            yield from _tensors(part)
    elif isinstance(result, dict):
        yield from _tensors(list(result.values()))
