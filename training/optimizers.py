"""Optimisers by name, and learning rates by step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from .came import Came
from .muon import Muon

NAMES = ("adamw", "adamw8bit", "came", "prodigy", "muon")
MUON_RATE = 3.0  # Muon's learning rate over AdamW's, which trains the rest


def make(name: str, parameters: Iterable[tuple[str, torch.nn.Parameter]], lr: float, betas=None,
         weight_decay: float = 0.0) -> list[torch.optim.Optimizer]:
    """One optimiser, or two for muon, which is for matrices inside a network: those of its blocks, tables and modulations apart.
    parameters: by
    name; those of fewer than two dimensions never decay. betas: the optimiser's own unless given; muon has them for AdamW's part.
    prodigy finds its rate by itself: lr is what that is multiplied by, 1 as a rule. Raises ValueError for an unknown name, for one
    whose package is missing, and for muon without such matrices."""
    parameters = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    trained = [parameter for _, parameter in parameters]
    if not trained:
        raise ValueError("Nothing is to be trained: no parameter takes gradients.")
    groups = [{"params": group, "weight_decay": decay} for group, decay in (
        ([p for p in trained if p.dim() > 1], weight_decay), ([p for p in trained if p.dim() <= 1], 0.0)) if group]
    given = {"betas": tuple(betas)} if betas else {}
    if name == "adamw":
        return [torch.optim.AdamW(groups, lr=lr, **given)]
    if name == "came":
        return [Came(groups, lr=lr, **given)]
    if name == "muon":
        matrices = [p for name, p in parameters if p.dim() == 2 and "transformer_blocks." in name and ".norm" not in name
                    and not name.endswith("table")]
        if not matrices:
            raise ValueError("train.optimizer muon is for the matrices of a transformer's blocks, and none of them is trained: choose "
                             "adamw.")
        ids = {id(p) for p in matrices}
        others = [{**group, "params": [p for p in group["params"] if id(p) not in ids]} for group in groups]
        others = [group for group in others if group["params"]]
        muon = Muon(matrices, lr=lr * MUON_RATE, weight_decay=weight_decay)
        return [muon, torch.optim.AdamW(others, lr=lr, **given)] if others else [muon]
    if name == "adamw8bit":
        return [_package("bitsandbytes", name).optim.AdamW8bit(groups, lr=lr, **given)]
    if name == "prodigy":
        # Without the safeguard a warm-up of the rate spoils what it learns of the distance.
        return [_package("prodigyopt", name).Prodigy(groups, lr=lr, use_bias_correction=True, safeguard_warmup=True, **given)]
    raise ValueError(f"train.optimizer is {name!r}: choose one of {', '.join(NAMES)}.")


def _package(package: str, name: str):
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"train.optimizer {name} needs the package {package}, which cannot be imported here ({error}): "
                         f"install it into this environment (pip install {package}), or choose adamw.") from error


def rate(step: int, steps: int, warmup: int, schedule: str) -> float:
    """Share of the learning rate at a step, 0 to steps - 1: linear warm-up, then "constant", "linear" or "cosine" to zero at the
    end. Raises ValueError for another schedule."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    left = 1 - (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return left
    if schedule == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    raise ValueError(f"train.schedule is {schedule!r}: choose constant, cosine or linear.")
