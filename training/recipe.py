"""From settings to what is trained: the network with its adapters or copies, the objective, the optimisers, the result's file."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as computed_again

from ..sana_core.transformer import ReadsText
from . import adapter_files, adapters, controlnets, optimizers
from .average import Average
from .models import DTYPES, Models
from .objectives import sprint
from .objectives.cogvideox import CogVideoXV, sample_posterior
from .objectives.controlnet import Controlled
from .objectives.sana import SanaFlow
from .objectives.sana_video import SanaVideoFlow
from .objectives.sprint import SprintSCM
from .objectives.trajectories import SprintTrajectories
from .parallel import calls, copy_into


@dataclass
class Recipe:
    """network: what the objective calls. trained: the module that is trained, the network or its adapters. blocks: parts that are
    computed again in the backward pass, and sharded. write(path, weights): the result's file, of trained parameters by name."""

    network: nn.Module
    trained: nn.Module
    objective: object
    params: object
    blocks: list[nn.Module]
    write: Callable[[Path, dict], None]
    drawn: nn.Module  # what samples are made with

    @property
    def named(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.trained.named_parameters() if p.requires_grad]


class Loss(nn.Module):
    """The objective as a module, so that processes can share its work: forward(batch, generator) -> (B,).

    level: at one noise level, for validation. step: what Sprint's objective goes by. run: compute run(network) instead, of
    sampling.
    """

    def __init__(self, made: Recipe, scale: float):
        super().__init__()
        self.network, self.drawn, self.objective, self.scale = made.network, made.drawn, made.objective, scale
        if made.trained is not made.network:  # hooks call adapters: they are no part of the network
            self.trained = made.trained

    def forward(self, batch, generator, level: float | None = None, run=None, step: int | None = None):
        if run is not None:
            return run(self.drawn)
        if "mean" in batch:
            latents = batch["mean"] * self.scale if level is not None else sample_posterior(
                batch["mean"], batch["logvar"], self.scale, generator)
            batch = batch | {"latents": latents}
        if level is not None:
            return self.objective.losses_at(self.network, batch, level, generator)
        if isinstance(self.objective, SprintSCM):
            return self.objective.losses(self.network, batch, generator, step)
        return self.objective.losses(self.network, batch, generator)


def build(config, models: Models, meta: bool = False) -> Recipe:
    """What a run trains, on the CPU. meta: without numbers, to count. Raises ValueError."""
    kind, params, dtype, quantize = config.train.kind, models.params, DTYPES[config.model.dtype], config.model.quantize
    if not _is_trained(params, kind):
        raise ValueError(f"{config.model.transformer}: this is {models.identity.variant}, which is not trained with kind {kind}.")
    drawn = None
    if kind == "full":
        network = trained = models.transformer(torch.float32, meta=meta).requires_grad_(True)
        write = partial(_write_network, config, models.family.checkpoint, params)
    elif kind == "controlnet":
        blocks = config.objective.control_layers
        if config.train.controlnet:
            control = controlnets.load(Path(config.train.controlnet), params, blocks, meta)
        else:
            control = controlnets.new(params, blocks, meta)
            if not meta:
                control.start_from(models.transformer(torch.float32))
        network = trained = Controlled(models.transformer(dtype, quantize, meta), control)
        write = partial(_write_control, config, params, control.wiring)
    elif kind == "sprint":
        teacher = Models(config.model, config.train.teacher)
        student = models.transformer(torch.float32) if params.guidance_embeds else sprint.start_from(
            teacher.transformer(torch.float32))
        drawn, params = student.requires_grad_(True), student.params
        if config.objective.distillation == "trajectories":
            network = trained = student
            write = partial(_write_network, config, models.family.checkpoint, params)
        else:
            layers = tuple(config.objective.discriminator_layers) if config.objective.adversarial else ()
            network = trained = sprint.Distilled(student, teacher.transformer(dtype), layers)
            write = partial(_write_student, config, models.family.checkpoint, params)
    else:
        network, lora = models.transformer(dtype, quantize, meta), config.lora
        trained = adapters.add(network, lora.rank, config.alpha, lora.targets, lora.dropout, lora.dora,
                               torch.Generator().manual_seed(config.train.seed))
        spare = adapters.Adapters(trained.names, copy.deepcopy([*trained.layers]), lora.rank, config.alpha)
        write = partial(_write_adapters, config, models, spare)
    network.train()
    blocks = [block for module in network.modules() for name, block in module.named_children() if module is not network
              and isinstance(module, nn.ModuleList) and hasattr(block, "attn1")]
    compiled = config.train.compile != "none"
    for reader in (module for module in network.modules() if compiled and isinstance(module, ReadsText)):
        reader.trims = False  # one length of text: inductor makes a backward of wrong strides for the second (PyTorch 2.11)
    for block in () if meta else blocks:
        for name in calls(block):
            if compiled:
                setattr(block, name, torch.compile(getattr(block, name), backend=config.train.compile))
            if config.train.gradient_checkpointing:
                setattr(block, name, partial(_computed_twice, getattr(block, name)))
    return Recipe(network, trained, objective(config, params), params, blocks, write, drawn or network)


def _is_trained(params, kind) -> bool:
    """Not so are models that are given masks or a control video, nor those of few steps, but Sprint by its own kind."""
    few_steps = any(getattr(params, name, False) for name in ("causal", "distilled", *["guidance_embeds"] * (kind != "sprint")))
    return getattr(params, "conditioning", "none") in ("none", "image") and not few_steps


def _computed_twice(forward, *arguments, **named):
    if not torch.is_grad_enabled():
        return forward(*arguments, **named)
    return computed_again(forward, *arguments, use_reentrant=False, **named)


def objective(config, params):
    """The loss of these settings."""
    o, dropout = config.objective, config.data.caption_dropout
    if config.train.kind == "sprint" and o.distillation == "trajectories":
        return SprintTrajectories(o.from_noise)
    if config.train.kind == "sprint":
        return SprintSCM(o.sigma_data, o.time_mean, o.time_std, tuple(o.guidance), o.tangent_warmup, adversarial=o.adversarial,
                         discriminator_mean=o.discriminator_mean, discriminator_std=o.discriminator_std,
                         max_time_share=o.max_time_share)
    if config.model.family == "cogvideox":
        return CogVideoXV(params.snr_shift_scale, params.patch_size_t, dropout, o.image_dropout, o.noise_lean, o.last_share)
    flow = dict(shift=config.shift or params.flow_shift, logit_mean=o.logit_mean, logit_std=o.logit_std,
                whole_timesteps=o.whole_timesteps, multiplier=params.timestep_multiplier, caption_dropout=dropout,
                empty_mask=o.empty_mask)
    return SanaVideoFlow(**flow, picture_share=o.picture_share) if config.model.clips else SanaFlow(**flow)


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


def _write_adapters(config, models, spare, path: Path, weights: dict) -> None:
    """spare: adapters as the trained ones, whole and on the CPU."""
    copy_into(spare.named_parameters(), weights)
    adapter_files.write(path, spare, about(config, models), config.output.dtype)


def about(config, models) -> dict[str, str]:
    """What a LoRA's file says of its training."""
    train, size = config.train, config.data.resolution or config.data.buckets
    return {"title": config.output.name, "architecture": f"{config.model.family}/lora", "base_model": models.identity.variant,
            "resolution": str(size) if isinstance(size, int) else "x".join(map(str, size[::-1])) if config.data.resolution else "",
            "ss_sd_model_name": Path(config.model.transformer).name, "ss_steps": train.steps, "ss_learning_rate": train.lr,
            "ss_optimizer": train.optimizer, "ss_lr_scheduler": train.schedule, "ss_seed": train.seed,
            "ss_batch_size_per_device": config.data.batch_size, "ss_gradient_accumulation_steps": train.accumulation,
            "ss_max_grad_norm": train.clip, "ss_caption_dropout_rate": config.data.caption_dropout,
            "ss_network_dropout": config.lora.dropout}


def _write_network(config, checkpoint, params, path: Path, weights: dict) -> None:
    write_tensors(path, checkpoint.from_canonical(weights, "diffusers"), DTYPES[config.output.dtype], params.to_diffusers())


def _write_student(config, checkpoint, params, path: Path, weights: dict) -> None:
    own = {name.removeprefix("student."): t for name, t in weights.items() if name.startswith("student.")}
    _write_network(config, checkpoint, params, path, own)


def _write_control(config, params, wiring: str, path: Path, weights: dict) -> None:
    from ..sana_core.controlnet_checkpoint import from_canonical

    tensors = {name.removeprefix("control."): t for name, t in weights.items()}
    own = {"_class_name": "SanaControlNetModel", "wiring": wiring, "num_layers": config.objective.control_layers}
    told = params.to_diffusers() | own
    write_tensors(path, from_canonical(tensors, "diffusers"), DTYPES[config.output.dtype], told)


def write_tensors(path: Path, tensors: dict, dtype: torch.dtype, config: dict) -> None:
    """A safetensors file in diffusers' layout that the pack's loaders read. Whole or not there."""
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({name: t.to(dtype).contiguous() for name, t in tensors.items()}, part,
                                {"format": "pt", "config": json.dumps(config)})
    os.replace(part, path)
