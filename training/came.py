"""CAME: an adaptive optimiser whose second moments are factored, and which trusts an update the less, the more it differs
from the ones before. Source: arXiv 2307.02047, algorithm 2; Sana was trained with it."""

from __future__ import annotations

import torch


class Came(torch.optim.Optimizer):
    """betas: of the update, its square, and its instability. eps: added to the square of the gradient, and of the instability.
    clip: largest root mean square of an update before it is averaged. State of a matrix (m, n): m * n + 2 (m + n) numbers; what is
    no matrix, 1x1 convolutions apart, has its square whole and no instability."""

    def __init__(self, parameters, lr: float = 1e-4, betas=(0.9, 0.999, 0.9999), eps=(1e-30, 1e-16), clip: float = 1.0,
                 weight_decay: float = 0.0):
        if len(betas) != 3:
            raise ValueError(f"CAME has three betas, {len(betas)} were given: as in (0.9, 0.999, 0.9999).")
        super().__init__(parameters, dict(lr=lr, betas=tuple(betas), eps=tuple(eps), clip=clip, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter, group):
        (first, second, third), (eps_square, eps_unstable) = group["betas"], group["eps"]
        gradient, state = parameter.grad.float(), self.state[parameter]
        matrix = parameter.dim() == 2 or parameter.dim() == 4 and parameter.shape[2:] == (1, 1)
        gradient = gradient.flatten(1) if matrix else gradient
        if not state:
            state["average"] = torch.zeros_like(gradient)
            for name in ("square", "unstable") if matrix else ():
                state[f"{name}_rows"] = gradient.new_zeros(gradient.shape[0])
                state[f"{name}_columns"] = gradient.new_zeros(gradient.shape[1])
            if not matrix:
                state["square"] = torch.zeros_like(gradient)
        if matrix:
            update = gradient * _inverse_root(state, "square", gradient.square() + eps_square, second)
        else:
            state["square"].lerp_(gradient.square() + eps_square, 1 - second)
            update = gradient * state["square"].rsqrt()
        update /= (update.square().mean().sqrt() / group["clip"]).clamp(min=1.0)
        average = state["average"].lerp_(update, 1 - first)
        if matrix:
            average = average * _inverse_root(state, "unstable", (update - average).square() + eps_unstable, third)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(average.reshape(parameter.shape).to(parameter.dtype), alpha=group["lr"])


def _inverse_root(state, name, values, beta):
    """1 / sqrt of the moving average of `values` (m, n), kept as the means of its rows and columns."""
    rows = state[f"{name}_rows"].lerp_(values.mean(dim=1), 1 - beta)
    columns = state[f"{name}_columns"].lerp_(values.mean(dim=0), 1 - beta)
    return (rows / rows.mean()).rsqrt()[:, None] * columns.rsqrt()
