"""DeepSpeed: gradients (ZeRO 2) and the optimiser's state (ZeRO 1 and 2) shared among processes, by a configuration file.

What the settings of a run say already, batch, accumulation, clipping and arithmetic, is put into its "auto" fields; a file
that says otherwise is refused. The package is imported when a run begins with it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import nn

AUTO = "auto"


def launched(path: str | None) -> str:
    """The file that `accelerate launch --use_deepspeed` names, or that of the settings."""
    if (given := os.environ.pop("ACCELERATE_DEEPSPEED_CONFIG_FILE", None) or path) is None:
        raise ValueError("accelerate launch --use_deepspeed: no configuration file is named. Add --deepspeed_config_file "
                         "FILE.json, or parallel.deepspeed=FILE.json.")
    return given


def settings(path: str | Path, config, processes: int) -> dict:
    """DeepSpeed's settings for a run, of its file. Raises FileNotFoundError, and ValueError that names file and field."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file. parallel.deepspeed, or accelerate's --deepspeed_config_file, names a "
                                "JSON file of DeepSpeed's.") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error}). DeepSpeed's configuration is a JSON file.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: found a {type(found).__name__}; DeepSpeed's configuration is a JSON object.")
    if mistakes := [f"{path}: {field}: {text}" for field, text in _mistakes(found, config, processes)]:
        raise ValueError("\n".join(mistakes))
    made = {name: value for name, value in found.items() if name not in ("bf16", "fp16", "train_batch_size")} | _ours(config)
    made["zero_optimization"] = {name: value for name, value in found["zero_optimization"].items() if value != AUTO}
    made["zero_allow_untested_optimizer"] = True
    if config.model.dtype == "bf16":  # its own bf16 would keep what is trained in bf16, too
        made["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return made


def _ours(config) -> dict:
    """What a run's settings say themselves."""
    return {"train_micro_batch_size_per_gpu": config.data.batch_size,
            "gradient_accumulation_steps": config.train.accumulation, "gradient_clipping": config.train.clip or 0.0}


def _mistakes(found: dict, config, processes: int):
    """(field, text) of all that a run would not do."""
    ours = _ours(config)
    ours["train_batch_size"] = ours["train_micro_batch_size_per_gpu"] * ours["gradient_accumulation_steps"] * processes
    source = {"train_micro_batch_size_per_gpu": "data.batch_size is", "gradient_accumulation_steps": "train.accumulation is",
              "gradient_clipping": "train.clip is",
              "train_batch_size": f"batches, accumulation and {processes} processes give"}
    for name, value in ours.items():
        if found.get(name, AUTO) not in (AUTO, value):
            yield name, f"found {found[name]}, and {source[name]} {value}. Write \"auto\""
    for name, instead in (("optimizer", "train.optimizer, train.lr, train.betas and train.weight_decay"),
                          ("scheduler", "train.schedule and train.warmup"), ("torch_autocast", "model.dtype")):
        if name in found:
            yield name, f"a run has {instead} instead. Take the section out"
    for name in ("bf16", "fp16"):
        enabled = found[name].get("enabled", AUTO) if isinstance(found.get(name), dict) else AUTO
        if enabled not in (AUTO, False) and name != config.model.dtype:
            yield f"{name}.enabled", f"found {enabled}, and model.dtype is {config.model.dtype}. Write \"auto\""
    shares = found.get("zero_optimization")
    stage = shares.get("stage") if isinstance(shares, dict) else None
    if stage not in (1, 2):
        yield "zero_optimization.stage", f"found {stage}; allowed: 1 or 2. To share weights too, take parallel.fsdp=true instead"
    for name in ("offload_optimizer", "offload_param"):
        device = shares.get(name, {}).get("device", "none") if isinstance(shares, dict) else "none"
        if device not in ("none", None, AUTO):
            yield f"zero_optimization.{name}.device", f"found {device}; allowed: none. Nothing is moved out of the GPU here"


class Engine:
    """A loss and its optimiser in DeepSpeed's hands. call(batch, generator, step=): the loss."""

    def __init__(self, made: dict, loss: nn.Module, optimizer: torch.optim.Optimizer):
        deepspeed = package()
        from deepspeed.utils import safe_get_full_optimizer_state

        self.full_state, self.optimizer = safe_get_full_optimizer_state, optimizer
        self.groups = [list(group["params"]) for group in optimizer.param_groups]  # which it replaces by flat ones
        self.call = deepspeed.initialize(model=loss, optimizer=optimizer, config=made)[0]

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        self.call.set_gradient_accumulation_boundary(last)
        self.call.backward(loss)

    def step(self) -> float:
        """Clip and step; returns the norm before."""
        self.call.step()
        return float(self.call.get_global_grad_norm())

    def state(self) -> dict:
        """The optimiser's state as torch's AdamW has it, whole and on the CPU. All processes must call it."""
        groups, state, n = [], {}, 0
        for group, parameters in zip(self.optimizer.param_groups, self.groups):
            groups.append({name: value for name, value in group.items() if name != "params"}
                          | {"params": list(range(n, n + len(parameters)))})
            flat = self.optimizer.state[group["params"][0]]
            for parameter in parameters:
                state[n] = {name: value.cpu().clone() if not value.dim() else self.full_state(parameter, name).cpu()
                            for name, value in flat.items()}
                n += 1
        return {"state": state, "param_groups": groups}

    @torch.no_grad()
    def load(self, state: dict) -> None:
        """Take up such a state, and the weights as they are now."""
        self.call.optimizer.refresh_fp32_params()
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        for group, parameters in zip(self.optimizer.param_groups, self.groups):
            flat = group["params"][0]
            mine = self.optimizer.state.setdefault(flat, {})
            for parameter in parameters:
                place = parameter._hp_mapping  # None: another process has it
                for name, value in state["state"][numbers.pop(0)].items():
                    if not value.dim():
                        mine[name] = value.clone()
                        continue
                    part = mine.setdefault(name, torch.zeros_like(flat))
                    if place is not None:
                        here, there = place.hp_fragment_address, place.lp_fragment_address
                        part.narrow(0, here.start, here.numel).copy_(value.flatten().narrow(0, there.start, there.numel))


def package():
    """deepspeed. Raises ValueError where it cannot be imported."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise ValueError(f"parallel.deepspeed: the package deepspeed cannot be imported here ({error}): install it into this "
                         "environment (pip install deepspeed), or take parallel.fsdp=true.") from error
    return deepspeed
