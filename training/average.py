"""An exponential moving average of what is trained."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager

import torch


class Average:
    """decay: share of the old average a step, reached over the first steps (step + 1) / (step + 10), so that what training began
    with does not last. parameters: named, in fp32."""

    def __init__(self, parameters: Iterable[tuple[str, torch.nn.Parameter]], decay: float):
        self.parameters = dict(parameters)
        self.decay, self.step = decay, 0
        self.values = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """After each step of the optimiser."""
        decay = min(self.decay, (self.step + 1) / (self.step + 10))
        for name, parameter in self.parameters.items():
            self.values[name].lerp_(parameter, 1 - decay)
        self.step += 1

    @contextmanager
    def in_place(self):
        """The network with the averages as its weights, for samples and files."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self):
        for name, parameter in self.parameters.items():
            kept = parameter.clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(kept)

    def state_dict(self) -> dict:
        return {"step": self.step, "values": self.values}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError for other parameters' averages."""
        found, wanted = ({name: tuple(value.shape) for name, value in values.items()} for values in (state["values"], self.values))
        if found != wanted:
            name = next(name for name in {**wanted, **found} if found.get(name) != wanted.get(name))
            raise ValueError(f"The saved averages are another training's: {name} is {found.get(name, 'not there')}, and here "
                             f"{wanted.get(name, 'not trained')}. Continue with the settings that it began with.")
        self.step = state["step"]
        for name, value in self.values.items():
            value.copy_(state["values"][name])
