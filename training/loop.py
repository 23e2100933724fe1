"""The training loop. What a step does depends on its number alone: its batches, its noise, its learning rate; so a run that was
stopped anywhere, or has more processes that load data, comes to the same weights to the bit."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from . import checkpoints
from .parallel import Processes, copy_into, load_optimizer, whole
from .samples import number

MOST_SKIPPED = 20  # steps in a row: each halves the scale of fp16's loss, which begins at 65,536


@dataclass
class Task:
    """All that the loop needs to know.

    loss(batch, generator, step=) -> (B,), one a row: as Processes.prepare made it. named: the trained parameters. buffers: what
    else changes in training, by name. rate(step): what the
    learning rate is multiplied by. average: an average.Average or None. data[n]: batch number n, with plan.batch(n) the numbers
    of its rows. check(step) -> {"loss": ...} or {}: validation, on the averaged weights. results(folder,
    weights): write the result into a checkpoint's folder, of the trained parameters' values.
    """

    loss: nn.Module
    named: list[tuple[str, nn.Parameter]]
    optimizers: list[torch.optim.Optimizer]
    rate: Callable[[int], float]
    average: object | None
    data: Dataset
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    check: Callable[[int], dict] = lambda step: {}
    results: Callable[[Path, dict], None] = lambda folder, weights: None
    deepspeed: dict | None = None  # its settings, where it is used


class NotFinite(ValueError):
    """A loss or gradient that is NaN or infinite."""


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop, and has saved."""


def fit(task: Task, config, processes: Processes, folder: Path, log=print, advice: Callable[[], str] = lambda: "") -> int:
    """Train to config.train.steps, from the latest checkpoint in folder/checkpoints on if there is one; returns the step.

    advice(): what to say when memory runs out. Raises NotFinite, Stopped, and torch.OutOfMemoryError with advice.
    """
    run = _Run(task, config, processes, folder, log)
    try:
        with _asked_to_stop() as stop:
            return run.to_the_end(stop)
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(f"step {run.step}: the memory does not suffice. {advice()}\n{error}") from None


class _Run:
    def __init__(self, task, config, processes, folder, log):
        self.task, self.config, self.processes, self.folder, self.log = task, config, processes, folder, log
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        self.parameters = [p for _, p in task.named]
        self.rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in task.optimizers]
        self.skipped = self.in_a_row = 0  # steps that fp16 was too small for
        self.loss = processes.begin(task.loss, task.optimizers, task.deepspeed)
        self.go_on()
        self.history = checkpoints.History(folder / "history.jsonl", self.step) if processes.main else None

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def go_on(self) -> None:
        """Take up the latest checkpoint."""
        self.processes.wait()
        if (found := checkpoints.latest(self.checkpoints, self.log)) is None:
            return
        checkpoint, state = found
        if state["weights"].keys() != dict(self.task.named).keys():
            raise ValueError(f"{checkpoint.path}: this run trained other weights than the settings name now, and cannot go on. "
                             "Take another output.name, or put back model, train.kind and lora.")
        copy_into(self.task.named, state["weights"])
        copy_into(self.task.buffers.items(), state["buffers"])
        for optimizer, saved in zip(self.task.optimizers, state["optimizers"], strict=True):
            if self.processes.engine:
                self.processes.engine.load(saved)
            else:
                load_optimizer(optimizer, saved)
        if self.processes.scaler and "scaler" in state:  # there was none in other arithmetic
            self.processes.scaler.load_state_dict(state["scaler"])
            self.skipped, self.in_a_row = state["skipped"]
        if self.task.average is not None and state["average"] is not None:
            self.task.average.load_state_dict(state["average"])
        self.step, self.seconds = checkpoint.step, checkpoint.about["seconds"]
        losses = [c.about["loss"] for c in checkpoints.everyone(self.checkpoints) if c.about.get("loss") is not None]
        self.best = min(losses, default=math.inf)
        self.log(f"going on from {checkpoint.path.name}")

    def to_the_end(self, stop) -> int:
        task, train = self.task, self.config.train
        steps, every = train.steps, self.config.output.save_every
        if self.step == 0 and steps:
            self.validate()
        saved_step, saved_time = self.step, time.monotonic()
        batches = iter(self.loader())
        bar = tqdm(total=steps, initial=self.step, desc="steps", disable=not self.processes.main, mininterval=1, smoothing=0.05)
        try:
            while self.step < steps:
                began = time.monotonic()
                late = self.config.output.save_minutes is not None and (
                    began - saved_time > 60 * self.config.output.save_minutes)
                loss, norm, stopping, late = self.one(batches, stop, late)
                self.step += 1
                self.seconds += time.monotonic() - began
                if self.history:
                    self.history.add(step=self.step, loss=loss, lr=task.optimizers[0].param_groups[0]["lr"],
                                     seconds=round(self.seconds, 2),
                                     **{"skipped": True} if self.in_a_row else {"norm": norm})
                self.processes.accelerator.log({"loss": loss, "gradient": norm}, step=self.step)
                bar.update()
                bar.set_postfix(loss=f"{loss:.4f}", **{"skipped": self.skipped} if self.skipped else {}, refresh=False)
                found = self.validate() if self.due(self.config.validation.every) else {}
                better = found.get("loss", math.inf) < self.best
                if better or late or stopping or self.step == steps or (every and self.step % every == 0):
                    self.save(found.get("loss"))
                    saved_step, saved_time = self.step, time.monotonic()
                if stopping and self.step < steps:
                    raise Stopped
        finally:
            bar.close()
        assert saved_step == self.step
        return self.step

    def due(self, every: int | None) -> bool:
        return every is not None and (self.step % every == 0 or self.step == self.config.train.steps)

    def loader(self) -> DataLoader:
        """This process's batches from the present step on."""
        count, rank, accumulation = self.processes.count, self.processes.rank, self.config.train.accumulation
        numbers = range(self.step * accumulation * count, self.config.train.steps * accumulation * count)[rank::count]
        workers = self.config.data.workers
        return DataLoader(_Numbered(self.task.data), sampler=numbers, batch_size=None, num_workers=workers,
                          prefetch_factor=2 if workers else None)

    def one(self, batches, stop, late: bool) -> tuple[float, float, bool, bool]:
        """One step -> (loss averaged over its rows, norm of the gradient, whether to stop, whether to save)."""
        task, processes, train = self.task, self.processes, self.config.train
        window = train.accumulation * processes.count
        rows = sum(len(task.data.plan.batch(self.step * window + k)) for k in range(window))
        for optimizer, rates in zip(task.optimizers, self.rates):
            for group, lr in zip(optimizer.param_groups, rates):
                group["lr"] = lr * task.rate(self.step)
        task.loss.train()
        total, bad = 0.0, []
        for k in range(train.accumulation):
            n, batch = next(batches)
            torch.manual_seed(number("layers", train.seed, n))  # of dropout inside the network
            with processes.accumulate(task.loss), processes.autocast():
                noise = torch.Generator().manual_seed(number("noise", train.seed, n))
                losses = self.loss(_moved(batch, processes.device), noise, step=self.step)
                if not (finite := losses.detach().isfinite().cpu()).all():
                    bad += [name for name, good in zip(batch["names"], finite.tolist()) if not good]
                total += losses.detach().sum().item()
                # It is divided by the accumulation, and the processes' gradients are averaged.
                processes.backward(losses.sum() * (window / rows), k + 1 == train.accumulation)
        total, broken, stopping, late = processes.sum(
            [total, float(len(bad)), float(stop.is_set()), float(late and processes.main)])
        loss = total / rows
        if broken:
            self.refuse(f"the loss is {loss}", processes.everyones(bad))
        norm = processes.step(task.optimizers, self.parameters, train.clip)
        if math.isfinite(norm):
            self.in_a_row = 0
            if task.average is not None:
                task.average.update()
        else:
            self.in_a_row, self.skipped = self.in_a_row + 1, self.skipped + 1
            if processes.scaler is None or self.in_a_row >= MOST_SKIPPED:
                times = f", {self.in_a_row} steps one after the other" if processes.scaler else ""
                self.refuse(f"the gradient's norm is {norm}{times}", processes.everyones(list(batch["names"])))
        return loss, norm, stopping > 0, late > 0

    def refuse(self, what: str, names: Sequence[str]):
        raise NotFinite(f"step {self.step + 1}: {what}, with {', '.join(sorted(set(names))[:8])}. The weights are those of the "
                        f"last checkpoint. Look at these files; if they are sound, take a lower train.lr, a lower train.clip, or "
                        "model.dtype bf16 instead of fp16.")

    def validate(self) -> dict:
        """task.check on the averaged weights."""
        self.task.loss.eval()
        with self.averaged():
            found = self.task.check(self.step)
        if found:
            if self.history:
                self.history.add(step=self.step, **{f"validation_{name}": value for name, value in found.items()})
            self.processes.accelerator.log({f"validation/{name}": value for name, value in found.items()}, step=self.step)
        return found

    def averaged(self):
        return contextlib.nullcontext() if self.task.average is None else self.task.average.in_place()

    def save(self, loss: float | None) -> None:
        """A checkpoint of the present step. loss: on the held-out rows, where it was measured now."""
        self.best = min(self.best, math.inf if loss is None else loss)
        average = self.task.average
        engine, scaler = self.processes.engine, self.processes.scaler
        state = {"weights": whole(dict(self.task.named)), "buffers": whole(self.task.buffers),
                 "optimizers": [engine.state()] if engine else [whole(o.state_dict()) for o in self.task.optimizers],
                 "average": None if average is None else whole(average.state_dict())}
        if scaler:
            state |= {"scaler": scaler.state_dict(), "skipped": [self.skipped, self.in_a_row]}
        with self.averaged():
            weights = state["weights"] if average is None else whole(dict(self.task.named))
        if self.processes.main:
            about = {"step": self.step, "seconds": round(self.seconds, 2), "loss": loss}
            checkpoints.save(self.checkpoints, state, about, lambda part: self.task.results(part, weights))
            checkpoints.prune(self.checkpoints, self.config.output.keep)
        self.processes.wait()


class _Numbered(Dataset):
    """(n, batch n): the number goes along."""

    def __init__(self, data):
        self.data = data

    def __getitem__(self, n):
        return n, self.data[n]


def _moved(batch: dict, device) -> dict:
    return {name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()}


@contextlib.contextmanager
def _asked_to_stop():
    """An event that Ctrl-C and SIGTERM set; a second one ends at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number, frame):
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print("\nstopping after this step, and saving; once more to stop at once", flush=True)

    before = {name: signal.signal(name, ask) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
