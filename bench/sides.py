"""What the two sides of a case have in common, whatever the model: the baseline there is, and how close ours must come."""

from __future__ import annotations

import importlib.util

import torch

DIFFUSERS = importlib.util.find_spec("diffusers") is not None  # without it the baseline is our own model, never compiled
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # largest relative L2 that is still the same computation


def sharing(ours, baseline, to_canonical):
    """[ours, baseline] for inference. ours stands on "meta" and gets the baseline's tensors, assigned and not copied,
    by to_canonical(state dict)."""
    ours.load_state_dict(to_canonical(baseline.state_dict()), assign=True)
    return [model.eval().requires_grad_(False) for model in (ours, baseline)]


def first(call):
    """A call that gives the first of the tuple that call gives."""
    return lambda x: call(x, return_dict=False)[0]


def compile_blocks(stacks):
    """torch.compile for every block of each stack: equal blocks share one compilation, so it takes seconds, not minutes."""
    for stack in stacks:
        for block in stack:
            block.compile(dynamic=False)
