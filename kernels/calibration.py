"""How large the inputs of a model's Linear layers get while it runs: what the input scales of fp8 are made from.

The largest magnitude is the figure to keep, no percentile: e4m3 has the same relative error over five decades, so a
clipped outlier costs more than the finer steps that clipping would buy.
"""

from __future__ import annotations

import math

import torch


class LargestInputs:
    """Watch layers of a module for as long as the context lasts.

        with LargestInputs(model, names) as seen:
            model(...)
        seen.values()   # {name: largest |input|}, a float

    names: of Linear layers, as in model.named_modules(). The model computes what it would without.
    """

    def __init__(self, module: torch.nn.Module, names):
        self.layers = {name: module.get_submodule(name) for name in names}
        self.largest = {}
        self.hooks = []

    def __enter__(self):
        self.hooks = [layer.register_forward_pre_hook(self._watcher(name)) for name, layer in self.layers.items()]
        return self

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def _watcher(self, name):
        def watch(layer, inputs):
            low, high = torch.aminmax(inputs[0].detach())
            largest = torch.maximum(-low, high).float()
            before = self.largest.get(name)
            # Stays on the device: asking for the number would make a GPU wait at every layer.
            self.largest[name] = largest if before is None else torch.maximum(before, largest)
        return watch

    def values(self) -> dict[str, float]:
        """{name: largest magnitude}, of the layers that ran. Raises ValueError when one got NaN or infinite numbers."""
        found = {name: float(value) for name, value in self.largest.items()}
        if broken := [name for name, value in found.items() if not math.isfinite(value)]:
            raise ValueError(f"during calibration {broken[0]} got NaN or infinite numbers: the model does not work with these "
                             "inputs or in this precision, so it cannot be measured.")
        return found
