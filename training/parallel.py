"""The processes of a run: one, or several of accelerate or torchrun, that share batches (DDP) or weights too (FSDP2).

Sharding is asked for by `accelerate launch --use_fsdp`, and done here by torch's fully_shard, which also works on CPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor


class Processes:
    """accelerator, rank, count, device; sharded: whether each process has a part of the weights alone."""

    def __init__(self, dtype: str = "fp32", accumulation: int = 1, tracker: str = "none", folder=None):
        self.sharded = os.environ.pop("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
        if dtype == "fp16" and not torch.cuda.is_available():
            raise ValueError("model.dtype fp16 needs a GPU to train: choose bf16 or fp32.")
        for state in (AcceleratorState, GradientState):  # an earlier run of this process had settings of its own
            state._reset_state()
        self.accelerator = Accelerator(
            mixed_precision="no" if dtype == "fp32" else dtype, gradient_accumulation_steps=accumulation, project_dir=folder,
            log_with=None if tracker == "none" else tracker, cpu=not torch.cuda.is_available())
        self.rank, self.count = self.accelerator.process_index, self.accelerator.num_processes
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        self.sharded &= self.count > 1

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    def prepare(self, loss: nn.Module, blocks: Iterable[nn.Module], in_turns: bool = False) -> nn.Module:
        """The module whose forward pass is the loss, as this process runs it. blocks: the parts that are sharded by
        themselves; in_turns: not all that is trained has gradients in each step. Call it before the optimiser is made."""
        loss.to(self.device)
        self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=in_turns)
        if not self.sharded:
            return self.accelerator.prepare_model(loss)
        for block in blocks:
            fully_shard(block)
            for name in calls(block):
                if name != "forward":
                    register_fsdp_forward_method(block, name)
        return fully_shard(loss)

    def sum(self, values: list[float]) -> list[float]:
        """Each value summed over all processes."""
        if self.count == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device="cpu" if self.device.type == "cpu" else self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def everyones(self, names: list[str]) -> list[str]:
        """The names of all processes."""
        if self.count == 1:
            return names
        found: list = [None] * self.count
        dist.all_gather_object(found, names)
        return [name for part in found for name in part]

    def close(self) -> None:
        self.accelerator.end_training()


def calls(block: nn.Module) -> tuple[str, ...]:
    """Names of the methods by which a network calls one of its blocks: SANA-Video 2.0 calls the halves by themselves."""
    return ("attend", "feed") if hasattr(block, "attend") else ("forward",)


def whole(value):
    """A structure of tensors with sharded ones put together, on the CPU. All processes must call it."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: whole(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(part) for part in value)
    return value


def like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A whole tensor placed, or sharded, as a parameter of its shape is."""
    if isinstance(parameter, DTensor) and not isinstance(tensor, DTensor) and tensor.shape == parameter.shape:
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    return tensor


@torch.no_grad()
def copy_into(parameters: Iterable[tuple[str, torch.Tensor]], tensors: dict[str, torch.Tensor]) -> None:
    """Write whole tensors into parameters by their names."""
    for name, parameter in parameters:
        parameter.copy_(like(tensors[name].to(parameter.dtype), parameter))


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """optimizer.load_state_dict of a whole state."""
    optimizer.load_state_dict(state)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor) and value.dim():
                    optimizer.state[parameter][name] = like(value, parameter)


def clip(parameters: list[torch.Tensor], most: float | None) -> float:
    """Scale gradients down to a norm of `most` over all of them; returns the norm that they had."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if most is not None and torch.isfinite(norm):
        torch._foreach_mul_(gradients, min(1.0, most / (norm.item() + 1e-6)))
    return norm.item()
