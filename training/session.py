"""A run from its settings to its result: cache, loop, pictures on the way, report. The same call goes on where a run stopped."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from . import checkpoints, config_rules, latents, recipe, run_report, samples, validation, zero
from .loop import Task, fit
from .models import Models
from .parallel import Processes, copy_into

TRACKERS = {"tensorboard": "tensorboard", "trackio": "trackio"}


def folder_of(config) -> Path:
    """The run's folder."""
    return Path(config.output.folder) / config.output.name


def train(loaded, log=print) -> Path:
    """Train what the settings say; returns the result's file.

    loaded: config_files.load(...). Raises ValueError, FileNotFoundError, loop.NotFinite, loop.Stopped, torch.OutOfMemoryError.
    """
    config, folder = loaded.config, folder_of(loaded.config)
    processes = Processes(config.model.dtype, config.train.accumulation, config.output.tracker, folder, config.parallel.fsdp,
                          config.parallel.deepspeed)
    say = log if processes.main else (lambda text: None)
    if (processes.sharded or processes.deepspeed) and (mistakes := list(config_rules.shared(config))):
        raise ValueError("\n".join(f"{key}: {text}" for key, text in mistakes))
    deepspeed = None
    if processes.deepspeed:
        deepspeed = zero.settings(processes.deepspeed, config, processes.count)
        zero.package()
    if processes.count == 1 and (config.parallel.fsdp or config.parallel.deepspeed):
        say("warning: parallel.*: there is one process, and nothing to share. For several: accelerate launch --num_processes N")
    if processes.main:
        folder.mkdir(parents=True, exist_ok=True)
        loaded.save(folder)
    models = Models(config.model)
    say(f"{config.model.transformer}: {models.identity.variant}")
    for warning in models.identity.warnings:
        say(f"warning: {warning}")
    data = latents.prepare(config, models, folder, processes.device, say, processes.rank, processes.count, processes.wait)
    say(samples.summary(data.train, data.held_out))

    made = recipe.build(config, models)
    count = sum(p.numel() for _, p in made.named)
    say(f"{count:,} numbers are trained, of a network of {sum(p.numel() for p in made.network.parameters()):,}")
    loss = processes.prepare(recipe.Loss(made, data.scale), made.blocks, config.train.kind == "sprint")
    if processes.count > 1:
        what = "weights sharded" if processes.sharded else "batches shared"
        if deepspeed:
            what = f"batches and DeepSpeed's ZeRO {deepspeed['zero_optimization']['stage']} shared"
        say(f"{what} over {processes.count} processes")
    named = made.named  # sharding has put others in their places
    task = Task(loss, named, recipe.make_optimizers(config, named), recipe.rate(config), recipe.average(config, named),
                latents.BatchDataset(data, made.params, data.batches()), dict(made.trained.named_buffers()),
                _Check(loss, data, made.params, models, processes, folder, say),
                lambda part, weights: _write_small(config, made, part, weights), deepspeed)
    processes.accelerator.init_trackers(_tracked(config), {})
    began = time.monotonic()
    fit(task, config, processes, folder, say, lambda: _advice(config))
    result = folder / f"{config.output.name}.safetensors"
    if processes.main:
        _write_result(config, made, folder, result, say)
        run_report.write(config, folder, data, processes.count, time.monotonic() - began)
        say(f"wrote {result} ({result.stat().st_size / 1e6:.1f} MB), and {folder / run_report.NAME}")
    processes.wait()
    processes.close()
    return result


class _Check:
    """Validation at a step: pictures into samples/, losses returned."""

    def __init__(self, loss, data, params, models, processes, folder, say):
        self.loss, self.data, self.params, self.models = loss, data, params, models
        self.processes, self.folder, self.say = processes, folder, say
        # Shared work is for the backward pass; sharded weights need all processes.
        self.plain = loss if processes.sharded else processes.accelerator.unwrap_model(loss)

    def __call__(self, step: int) -> dict:
        config, processes, found = self.data.config, self.processes, {}
        if not (processes.main or processes.sharded):
            processes.wait()
            return {}
        with processes.autocast():
            if self.data.held_out:
                found = validation.losses(lambda batch, generator, level: self.plain(batch, generator, level), self.data,
                                          self.params, config.validation.levels, processes.device)
            pictures = validation.draw(lambda call: self.plain(None, None, run=call), self.data, self.params,
                                       self._decode if processes.main else lambda latents: {}, processes.device)
        if pictures:
            validation.save(pictures, self.folder / "samples", step, config.sampling.fps)
        if found and processes.main:
            self.say(f"step {step}: loss {found['loss']:.4f} on {len(self.data.held_out)} held-out samples")
        processes.wait()
        return found

    def _decode(self, latents):
        with torch.autocast(self.processes.device.type, enabled=False):
            return validation.decode(self.models, self.data.scale, self.processes.device)(latents)


def _write_small(config, made, part: Path, weights: dict) -> None:
    """A LoRA's file into each checkpoint: it is small, and people try them. All weights are in the state already."""
    if config.train.kind == "lora":
        made.write(part / f"{config.output.name}.safetensors", weights)


def _write_result(config, made, folder: Path, result: Path, say) -> None:
    """The result of the last checkpoint, of the averaged weights where there are any."""
    found, state = checkpoints.latest(folder / "checkpoints", say)
    weights = state["weights"] if state["average"] is None else state["average"]["values"]
    made.write(result, weights)


def _tracked(config) -> str:
    return config.output.name


def _advice(config) -> str:
    told = []
    if config.data.batch_size > 1:
        told.append(f"data.batch_size={max(1, config.data.batch_size // 2)} with train.accumulation="
                    f"{2 * config.train.accumulation}")
    if not config.train.gradient_checkpointing:
        told.append("train.gradient_checkpointing=true")
    if config.train.kind in ("lora", "controlnet") and config.model.quantize == "none":
        told.append("model.quantize=int8")
    if config.train.kind == "full":
        told.append("train.optimizer=came or adamw8bit, or train.kind=lora")
    told.append("a smaller data.resolution or fewer data.frames")
    return "Turn down, in this order: " + "; ".join(told) + ". --check tells what each takes."


def load_weights(made, folder: Path, log=print) -> int:
    """Put the averaged weights of a run's latest checkpoint into a recipe's network; returns the step."""
    if (found := checkpoints.latest(folder / "checkpoints", log)) is None:
        raise FileNotFoundError(f"{folder}: there is no checkpoint in it. Train first.")
    checkpoint, state = found
    copy_into(made.named, state["weights"] if state["average"] is None else state["average"]["values"])
    return checkpoint.step
