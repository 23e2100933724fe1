"""The processes of a run: one, or several of accelerate or torchrun, that share batches (DDP), the optimiser's state as well
(DeepSpeed), or weights too (FSDP2).

Sharding is asked for by the settings or by `accelerate launch`, and done here by torch's fully_shard and DeepSpeed's own
engine, which work on CPUs as well; accelerate's way to them does not.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from . import zero
from .models import DTYPES


class Processes:
    """accelerator, rank, count, device; sharded: whether each process has a part of the weights alone. deepspeed: the path of
    its configuration, where it is used; `engine` then has the loss, once it has begun. scaler: of the loss, in fp16."""

    def __init__(self, dtype: str = "fp32", accumulation: int = 1, tracker: str = "none", folder=None, fsdp: bool = False,
                 deepspeed: str | None = None):
        self.sharded = _asked("FSDP") or fsdp
        self.deepspeed = zero.launched(deepspeed) if _asked("DEEPSPEED") else deepspeed
        if self.sharded and self.deepspeed:
            raise ValueError("FSDP2 and DeepSpeed were both asked for (parallel.fsdp, parallel.deepspeed, or accelerate launch): "
                             "take one of them.")
        for state in (AcceleratorState, GradientState):  # an earlier run of this process had settings of its own
            state._reset_state()
        self.accelerator = Accelerator(
            mixed_precision="no", gradient_accumulation_steps=accumulation, project_dir=folder,
            log_with=None if tracker == "none" else tracker, cpu=not torch.cuda.is_available())
        self.rank, self.count = self.accelerator.process_index, self.accelerator.num_processes
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        self.sharded, self.deepspeed = self.sharded and self.count > 1, self.deepspeed if self.count > 1 else None
        self.dtype, self.engine = dtype, None
        self.scaler = torch.amp.GradScaler(self.device.type) if dtype == "fp16" else None

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    def prepare(self, loss: nn.Module, blocks: Iterable[nn.Module], in_turns: bool = False) -> nn.Module:
        """The module whose forward pass is the loss, as this process runs it. blocks: the parts that are sharded by
        themselves; in_turns: not all that is trained has gradients in each step. Call it before the optimiser is made."""
        loss.to(self.device)
        if self.deepspeed:
            return loss
        self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=in_turns)
        if not self.sharded:
            return self.accelerator.prepare_model(loss)
        for block in blocks:
            fully_shard(block)
            for name in calls(block):
                if name != "forward":
                    register_fsdp_forward_method(block, name)
        return fully_shard(loss)

    def begin(self, loss: nn.Module, optimizers: list[torch.optim.Optimizer], settings: dict | None = None) -> nn.Module:
        """What a step calls: `loss`, or with DeepSpeed its engine. settings: zero.settings(...)."""
        if settings is None:
            return loss
        self.engine = zero.Engine(settings, loss, *optimizers)
        return self.engine.call

    def autocast(self):
        """The arithmetic of model.dtype."""
        return torch.autocast(self.device.type, DTYPES[self.dtype], enabled=self.dtype != "fp32")

    def accumulate(self, loss: nn.Module):
        """Round one batch of several of a step: gradients are exchanged after the last one alone."""
        return self.accelerator.accumulate(loss) if self.engine is None else contextlib.nullcontext()

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add a batch's gradients, divided by the number of batches. last: of this step."""
        if self.engine is not None:
            return self.engine.backward(loss, last)
        self.accelerator.backward(loss if self.scaler is None else self.scaler.scale(loss))

    def step(self, optimizers: list[torch.optim.Optimizer], parameters: list[torch.Tensor], most: float | None) -> float:
        """Clip to a norm of `most`, and step; returns the norm before. Where that is not finite no step is taken (but by
        DeepSpeed)."""
        if self.engine is not None:
            return self.engine.step()
        for optimizer in optimizers if self.scaler else ():
            self.scaler.unscale_(optimizer)
        norm = clip(parameters, most)
        for optimizer in optimizers:
            if math.isfinite(norm):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.scaler:
            self.scaler.update()
        return norm

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


def _asked(name: str) -> bool:
    """Whether `accelerate launch` was asked for this. It is not to do it itself."""
    return os.environ.pop(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true")


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
