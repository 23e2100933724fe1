"""One training loop for all three networks: schedule, moving average, checkpoints, time limit, loss curve.

Every step draws its batch from its own number, so a run that was stopped and resumed goes on exactly where it was.
"""
from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn
from tqdm import tqdm

from ..muon import Muon

WARM_UP = 50  # steps
SAVE_EVERY = 90.0  # seconds
MUON_RATE = 3.0  # Muon's rate over AdamW's


def pick_device(name: str) -> torch.device:
    """'auto' takes the GPU when there is one; else the name is torch's."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Fit:
    """Trains `modules` with warm-up, then a cosine to zero, and keeps an exponential moving average of the weights.

    The optimiser is AdamW, but for the matrices that split(modules) names, if given: those are Muon's.

    loss(step, progress) -> scalar tensor; its steps are counted from `first`. steps: length of the schedule. minutes: if given,
    the schedule is also over when that much time was spent on it, over all resumed runs together. folder/name.pt holds the
    state, folder/name.json the losses.
    """

    def __init__(self, name: str, modules: nn.Module, loss: Callable[[int, float], torch.Tensor], *, steps: int, folder: Path,
                 minutes: float | None = None, lr: float = 2e-3, average: float = 0.998, weight_decay: float = 0.01,
                 split: Callable[[nn.Module], list[nn.Parameter]] | None = None, first: int = 0):
        self.name, self.modules, self.loss, self.steps, self.minutes = name, modules, loss, steps, minutes
        self.lr, self.decay, self.first = lr, average, first
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.names = [n for n, p in modules.named_parameters() if p.requires_grad]
        self.parameters = [p for p in modules.parameters() if p.requires_grad]
        for_muon = split(modules) if split else []
        ids = {id(p) for p in for_muon}
        others = [p for p in self.parameters if id(p) not in ids]
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(
            [{"params": [p for p in others if p.dim() > 1], "weight_decay": weight_decay},
             {"params": [p for p in others if p.dim() <= 1], "weight_decay": 0.0}], lr=lr, betas=(0.9, 0.98))]
        if for_muon:
            self.optimizers.append(Muon(for_muon, lr=lr * MUON_RATE, weight_decay=weight_decay))
        self.rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        self.averaged = [p.detach().clone() for p in self.parameters]
        self.step, self.elapsed, self.losses = 0, 0.0, []

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.pt"

    @property
    def progress(self) -> float:
        """How much of the schedule is over, 0 to 1."""
        spent = self.elapsed / (60 * self.minutes) if self.minutes else 0.0
        return min(1.0, max(self.step / self.steps, spent))

    def load(self) -> bool:
        """Take up the saved state; False where there is none."""
        if not self.path.exists():
            return False
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, ours, average in zip(self.names, self.parameters, self.averaged):
                ours.copy_(state["model"][name])
                average.copy_(state["average"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.elapsed = state["step"], state["elapsed"]
        self.losses = json.loads(self.path.with_suffix(".json").read_text())[: self.step]
        return True

    def save(self) -> None:
        """Write the state; a crash in the middle leaves the old one."""
        self.path.with_suffix(".json").write_text(json.dumps(self.losses))
        state = {"model": dict(zip(self.names, (p.detach() for p in self.parameters))),
                 "average": dict(zip(self.names, self.averaged)), "optimizers": [o.state_dict() for o in self.optimizers], "step": self.step, "elapsed": self.elapsed}
        torch.save(state, self.path.with_suffix(".new"))
        os.replace(self.path.with_suffix(".new"), self.path)

    def run(self, stop_at: int | None = None, every: Callable[[int], None] | None = None, every_steps: int = 500) -> None:
        """Train to the end of the schedule, or to step `stop_at`, and save. every(step) is called now and then."""
        bar = tqdm(total=self.steps, initial=self.step, desc=self.name, mininterval=5, smoothing=0.05)
        saved = tick = time.monotonic()
        smooth = None
        try:
            while self.progress < 1.0 and (stop_at is None or self.step < stop_at):
                rate = min(1.0, (self.step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * self.progress))
                for optimizer, base in zip(self.optimizers, self.rates):
                    for group, lr in zip(optimizer.param_groups, base):
                        group["lr"] = lr * rate
                loss = self.loss(self.first + self.step, self.progress)
                self.modules.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
                for optimizer in self.optimizers:
                    optimizer.step()
                self.step += 1
                # A short run averages over its own length only.
                weight = 1 - min(self.decay, self.step / (self.step + 10))
                torch._foreach_lerp_(self.averaged, [p.detach() for p in self.parameters], weight)
                value = loss.item()
                if not math.isfinite(value):
                    raise RuntimeError(f"training of {self.name}: the loss is {value} at step {self.step}")
                self.losses.append(round(value, 5))
                smooth = value if smooth is None else 0.98 * smooth + 0.02 * value
                bar.update()
                bar.set_postfix(loss=f"{smooth:.4f}", lr=f"{self.lr * rate:.1e}", refresh=False)
                now = time.monotonic()
                self.elapsed, tick = self.elapsed + now - tick, now
                if now - saved > SAVE_EVERY:
                    self.save()
                    saved = now
                if every is not None and self.step % every_steps == 0:
                    every(self.step)
                    tick = time.monotonic()  # looking at pictures is not training
        finally:
            bar.close()
        self.save()

    def use_average(self) -> None:
        """Put the moving average into the modules, in place of the raw weights."""
        with torch.no_grad():
            for ours, average in zip(self.parameters, self.averaged):
                ours.copy_(average)


def loss_curve(losses: dict[str, list[float]], path: Path) -> None:
    """Draw the losses of the stages, on a logarithmic scale, one panel each, as a PNG."""
    width, height, edge = 900, 220, 40
    sheet = Image.new("RGB", (width, height * len(losses)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, values) in enumerate(losses.items()):
        if len(values) < 2:
            continue
        window = max(1, len(values) // 200)
        smooth = [sum(values[i : i + window]) / len(values[i : i + window]) for i in range(0, len(values), window)]
        logs = [math.log10(max(v, 1e-6)) for v in smooth]
        low, high = min(logs), max(max(logs), min(logs) + 1e-3)
        top, bottom = row * height + edge, (row + 1) * height - edge
        points = [(edge + 30 + (width - 2 * edge - 30) * i / max(1, len(logs) - 1), bottom - (bottom - top) * (v - low) / (high - low))
                  for i, v in enumerate(logs)]
        pen.rectangle((edge + 30, top, width - edge, bottom), outline="lightgrey")
        pen.line(points, fill=(30, 90, 200), width=2)
        pen.text((edge + 30, top - 18), f"{name}: {len(values)} steps, last {smooth[-1]:.4f}", fill="black")
        pen.text((4, top - 5), f"{10**high:.3g}", fill="black")
        pen.text((4, bottom - 8), f"{10**low:.3g}", fill="black")
    sheet.save(path)


def to_bytes(picture: torch.Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1] -> (H, W, 3) uint8."""
    return ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()


def contact_sheet(pictures: torch.Tensor, path: Path, columns: int = 8, side: int = 128, captions: list[str] | None = None) -> None:
    """Write pictures (N, 3, H, W) in [-1, 1] as one PNG, `columns` across, each shrunk to `side` pixels."""
    rows, line = -(-len(pictures) // columns), 24 if captions else 0
    sheet = Image.new("RGB", (columns * side, rows * (side + line)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        x, y = i % columns * side, i // columns * (side + line)
        sheet.paste(Image.fromarray(to_bytes(picture)).resize((side, side), Image.LANCZOS), (x, y))
        if captions:
            half = captions[i].find(" ", len(captions[i]) // 2)
            pen.text((x + 2, y + side), captions[i][:half] + "\n" + captions[i][half + 1 :], fill="black", font_size=9, spacing=1)
    sheet.save(path)
