"""From settings to what is trained: the network with its adapters or copies, the objective, the optimisers, the result's file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..sana_core.controlnet import SanaControlNet
from . import optimizers
from .average import Average
from .models import DTYPES, Models
from .objectives.cogvideox import CogVideoXV, sample_posterior
from .objectives.controlnet import Controlled
from .objectives.sana import SanaFlow

WIRING = "diffusers"  # of a ControlNet: what its file, which has diffusers' layout, is taken for everywhere


@dataclass
class Recipe:
    """network: with all that is trained in it. blocks: parts that are computed again in the backward pass, and sharded.
    write(path, weights): the result's file, of the trained parameters by name. adapters: of kind lora."""

    network: nn.Module
    objective: object
    params: object
    blocks: list[nn.Module]
    write: Callable[[Path, dict], None]
    adapters: object = None

    @property
    def named(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.network.named_parameters() if p.requires_grad]


class Loss(nn.Module):
    """The objective as a module, so that processes can share its work: forward(batch, generator) -> (B,).

    level: at one noise level, for validation. run: compute run(network) instead, of sampling.
    """

    def __init__(self, network: nn.Module, objective, scale: float):
        super().__init__()
        self.network, self.objective, self.scale = network, objective, scale

    def forward(self, batch, generator, level: float | None = None, run=None):
        if run is not None:
            return run(self.network)
        if "mean" in batch:
            latents = batch["mean"] * self.scale if level is not None else sample_posterior(
                batch["mean"], batch["logvar"], self.scale, generator)
            batch = batch | {"latents": latents}
        if level is None:
            return self.objective.losses(self.network, batch, generator)
        return self.objective.losses_at(self.network, batch, level, generator)


def build(config, models: Models) -> Recipe:
    """What a run trains, on the CPU. Raises ValueError."""
    kind, params = config.train.kind, models.params
    if kind == "sprint":
        raise ValueError("train.kind sprint cannot be trained by this version yet; `run.py train tiny-sprint` is of the embedded model "
                         "alone. Take lora, full or controlnet.")
    if params.conditioning not in ("none", "image") if config.model.family == "cogvideox" else params.guidance_embeds:
        raise ValueError(f"{config.model.transformer}: this is {models.identity.variant}, which is not trained with kind {kind}.")
    generator = torch.Generator().manual_seed(config.train.seed)
    dtype, adapters = DTYPES[config.model.dtype], None
    if kind == "full":
        network = models.transformer(torch.float32).requires_grad_(True)
        write = partial(_write_network, config, models)
    elif kind == "controlnet":
        control = SanaControlNet(params, config.objective.control_layers, WIRING)
        control.start_from(models.transformer(torch.float32))
        network = Controlled(models.transformer(dtype, config.model.quantize), control)
        write = partial(_write_control, config, params)
    else:
        from . import adapter_files
        from . import adapters as lora

        network = models.transformer(dtype, config.model.quantize)
        adapters = lora.add(network, config.lora.rank, config.alpha, config.lora.targets, dropout=config.lora.dropout,
                            dora=config.lora.dora, generator=generator)
        write = partial(_write_adapters, config, models, adapter_files, adapters)
    network.train()
    blocks = [block for module in network.modules() for name, block in module.named_children() if module is not network
              and isinstance(module, nn.ModuleList) and hasattr(block, "attn1")]
    if config.train.gradient_checkpointing:
        for block in blocks:
            block.forward = partial(_computed_twice, block.forward)
    return Recipe(network, objective(config, params), params, blocks, write, adapters)


def _computed_twice(forward, *arguments, **named):
    if not torch.is_grad_enabled():
        return forward(*arguments, **named)
    return checkpoint(forward, *arguments, use_reentrant=False, **named)


def objective(config, params):
    """The loss of these settings."""
    o, dropout = config.objective, config.data.caption_dropout
    if config.model.family == "sana":
        return SanaFlow(shift=config.shift or params.flow_shift, logit_mean=o.logit_mean, logit_std=o.logit_std,
                        whole_timesteps=o.whole_timesteps, multiplier=params.timestep_multiplier, caption_dropout=dropout,
                        empty_mask=o.empty_mask)
    return CogVideoXV(params.snr_shift_scale, params.patch_size_t, dropout, o.image_dropout)


def make_optimizers(config, named) -> list[torch.optim.Optimizer]:
    train = config.train
    return optimizers.make(train.optimizer, named, lr=train.lr, betas=train.betas, weight_decay=train.weight_decay)


def rate(config) -> Callable[[int], float]:
    """What the learning rate is multiplied by at a step."""
    train = config.train
    return lambda step: optimizers.rate(step, train.steps, train.warmup, train.schedule)


def average(config, named) -> Average | None:
    return Average(named, config.train.ema) if config.train.ema else None


# --- results ---


def _write_adapters(config, models, files, adapters, path: Path, weights: dict) -> None:
    files.write(path, adapters, about(config, models), weights=weights, dtype=config.output.dtype)


def about(config, models) -> dict:
    """What a LoRA's file says of its training."""
    return {"title": config.output.name, "base": models.identity.variant, "file": Path(config.model.transformer).name,
            "family": config.model.family, "steps": config.train.steps, "lr": config.train.lr,
            "optimizer": config.train.optimizer, "seed": config.train.seed, "resolution": config.data.resolution}


def _write_network(config, models, path: Path, weights: dict) -> None:
    tensors = models.family.checkpoint.from_canonical(weights, "diffusers")
    write_tensors(path, tensors, DTYPES[config.output.dtype], dataclasses.asdict(models.params))


def _write_control(config, params, path: Path, weights: dict) -> None:
    from ..sana_core.controlnet_checkpoint import from_canonical

    tensors = {name.removeprefix("control."): t for name, t in weights.items()}
    told = dataclasses.asdict(params) | {"_class_name": "SanaControlNetModel", "wiring": WIRING, "num_layers": config.objective.control_layers}
    write_tensors(path, from_canonical(tensors, "diffusers"), DTYPES[config.output.dtype], told)


def write_tensors(path: Path, tensors: dict, dtype: torch.dtype, config: dict) -> None:
    """A safetensors file in diffusers' layout that the pack's loaders read. Whole or not there."""
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({name: t.to(dtype).contiguous() for name, t in tensors.items()}, part,
                                {"format": "pt", "config": json.dumps(config)})
    os.replace(part, path)
