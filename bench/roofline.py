"""The least time that a network's matrix products, convolutions and attention can take on a machine.

Each of them takes at least its FLOPs at the speed of a large matrix product, and at least its operands and its result
at the speed of a copy; the floor is the sum of the longer of the two. Everything between them, norms and activations,
counts nothing, as if it were fused. So no program that computes the same products gets below it; how near one comes is
its share of the roofline.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

SIDE = {"cpu": 2048, "cuda": 8192}      # of the matrices that are multiplied
COPIED = {"cpu": 2**28, "cuda": 2**30}  # bytes; more than a cache holds
RUNS = 5


# torch's own table, and the attention of a CPU, which it lacks.
COUNTS = {**flop_registry, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
          lambda q, k, v, *args, out_val=None, **options: sdpa_flop_count(q.shape, k.shape, v.shape)}


@dataclass
class Machine:
    """What a device was measured to reach in one number type: FLOPs of a matrix product, bytes read and written of a copy,
    both a second."""

    flops: float
    bytes: float


class _Operations(TorchDispatchMode):
    """Collects (FLOPs, bytes) of what COUNTS knows."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if count := COUNTS.get(func._overloadpacket):
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
            self.found.append((count(*args, **(kwargs or {}), out_val=out), sum(t.numel() * t.itemsize for t in tensors)))
        return out


def operations(call, *inputs):
    """[(FLOPs, bytes)] of the products, convolutions and attentions in call(*inputs); on the meta device nothing is computed."""
    # Inference mode would hand over whole layers, which the table does not know.
    with torch.inference_mode(False), torch.no_grad(), _Operations() as seen:
        call(*inputs)
    return seen.found


def floor(found, machine):
    """Seconds that operations() take at least on a Machine."""
    return sum(max(flops / machine.flops, moved / machine.bytes) for flops, moved in found)


def machine(device, dtype, clock):
    """Measure a Machine with a clock of the harness: about three seconds on two cores."""
    side, size = SIDE[device], COPIED[device]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product, copy = (statistics.median(clock.seconds([clock.run(call) for _ in range(RUNS + 1)][1:]))
                     for call in (lambda: torch.mm(a, b), lambda: target.copy_(source)))
    return Machine(2 * side**3 / product, 2 * size / copy)
