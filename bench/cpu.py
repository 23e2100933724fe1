"""On a CPU: a case in fp32 and in the type that the pack computes in there, beside diffusers eager and compiled in both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ..kernels import processor
from . import sides
from .harness import Case


def chosen() -> torch.dtype:
    """What transformers are computed in on this processor."""
    return torch.bfloat16 if processor.multiplies_bf16() else torch.float32


def cases(make: Callable[[torch.dtype], Case], in_chosen: bool) -> Iterator[tuple[Case, dict]]:
    """make(dtype) -> the cases of that figure, each with what its row says of both sides. in_chosen: whether the figure's
    networks are computed in another type than fp32 where that is fast; autoencoders are not.

    One after the other: the last ones compile the baseline that the first ones had.
    """
    full = make(torch.float32)
    yield full, {"dtype": "fp32", "baseline": "diffusers, fp32, eager"}
    half = make(chosen()) if in_chosen and chosen() != torch.float32 else None
    if half is not None:
        yield beside(half, full, ", bf16 beside fp32"), {"dtype": "bf16", "baseline": "diffusers, fp32, eager"}
        yield beside(half, half, ", bf16"), {"dtype": "bf16", "baseline": "diffusers, bf16, eager"}
    if not full.stacks:  # without diffusers there is nothing to compile
        return
    sides.compile_blocks(full.stacks)
    yield beside(full, full, ", beside compiled"), {"dtype": "fp32", "baseline": "diffusers, fp32, compiled"}
    if half is not None:
        sides.compile_blocks(half.stacks)
        yield beside(half, half, ", bf16 beside compiled"), {"dtype": "bf16", "baseline": "diffusers, bf16, compiled"}


def beside(ours: Case, baseline: Case, suffix: str) -> Case:
    """One case's ours beside another's baseline, each on its own inputs."""
    return replace(ours, name=ours.name + suffix, ours=lambda: ours.ours(*ours.inputs[0]),
                   baseline=lambda: baseline.baseline(*baseline.inputs[0]), inputs=[()])
