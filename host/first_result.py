"""Weights that hold NaN or infinity: found at a network's first result, and told by the name of the file.

Looking at all weights when they are loaded costs 10 % and more of the load, and where the host keeps them mapped it would
read the whole file for that alone; a look at one result costs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from ..storage.checkpoints import check_finite, is_finite


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
        if not all(map(is_finite, _tensors(result))):
            check_finite(self.weights(), self.name)
            logging.warning("%s: its first result holds NaN or infinite numbers, and its weights do not: what went in does, or a "
                            "weight_dtype of bf16 or fp32 is needed.", self.name)
        self.passed = True

    def watch(self, module: torch.nn.Module) -> None:
        """Look at the first result of `module`."""
        module.register_forward_hook(lambda module, inputs, result: self(result))

    def around_model(self, executor, *args, **kwargs):
        """The same, as the host's wrapper of a diffusion model: outside of what may be compiled."""
        result = executor(*args, **kwargs)
        self(result)
        return result


def _tensors(result):
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, (tuple, list)):
        for part in result:
            yield from _tensors(part)
    elif isinstance(result, dict):
        yield from _tensors(list(result.values()))
