"""What the trainings of the embedded models share: stages over one working folder, and writing files and figures.

What people train too is trained as they do it (configured.py). The rest has a loop of its own, `Fit`.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import zlib
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from . import drawn_folders
from .loop import Fit, loss_curve, pick_device

GENTLER = 0.4  # of a rate, for files that go on: at the whole they first unlearn
WORK = Path(__file__).resolve().parents[2] / "output" / "train"


class Recipe:
    """A family's training. A subclass says what its stages are. It has a method for each that makes its Fit, but for those in
    `configured`: of them it says what they are trained on, and from which files, by plan(stage) and start(stage)."""

    name: str                      # of the family, and of its working folder
    stages: tuple[str, ...]
    steps: dict[str, int]          # lengths of the schedules when time allows
    share: dict[str, float]        # of --minutes
    files: dict[str, str]          # stage to file, below the folder of models
    title: str                     # of its chapter in models/README.md
    configured: dict[str, str] = {}  # stage to the name of its configuration
    drawn: dict[str, int] = {}       # how many pictures or clips are drawn for such a stage
    suffix: str = ".png"             # of their files
    further: tuple[str, ...] = ()  # stages that can go on from the files: what others were trained on stays as it is, or near

    def __init__(self, options: argparse.Namespace):
        self.options = options
        if options.further and options.stage not in (*self.further, "export"):
            raise SystemExit(f"train: --further goes with --stage {' or '.join(self.further) or '(none of this model)'}: what the "
                             f"other files were trained on cannot change under them.")
        self.work = options.work or WORK / self.name
        self.device = pick_device(options.device)
        if options.fresh and self.work.exists():
            shutil.rmtree(self.work)
        self.work.mkdir(parents=True, exist_ok=True)

    def fit(self, stage: str, make, **settings) -> Fit:
        """A Fit with the stage's freshly made modules, taken up from its checkpoint if there is one."""
        torch.manual_seed(self.stages.index(stage) + 1)
        options = self.options
        modules = make().to(self.device)
        minutes = options.minutes * self.share[stage] if options.minutes else None
        fit = Fit(stage, modules, modules.loss, steps=options.steps or self.steps[stage], minutes=minutes,
                  folder=self.work, first=self.seed(stage), **settings)
        fit.load()
        return fit

    def rate(self, lr: float) -> float:
        """What a stage is trained at whose configuration or schedule says lr."""
        return GENTLER * lr if self.options.further else lr

    def seed(self, stage: str) -> int:
        """Of a stage's drawings: what goes on from a file is shown others than that file was."""
        file = self.files["autoencoder" if stage == "decoder" else stage]
        return zlib.crc32((self.options.source / file).read_bytes()) if self.options.further else 0

    def done(self, stage: str) -> Fit:
        """A finished, or at least begun, stage with its averaged weights."""
        fit = getattr(self, stage)()
        if fit.step == 0:
            raise SystemExit(f"train: stage '{stage}' has not been trained in {self.work}; run it first, or go on from the files "
                             f"in {self.options.source} with --further.")
        fit.use_average()
        fit.modules.eval().requires_grad_(False)
        return fit

    def from_file(self, stage: str) -> bool:
        """Whether the stage's weights are those of the file in --source: with --further, until it is trained here. So
        `--further --stage export` in an empty working folder measures the files as they are."""
        return self.options.further and not self.began(stage)

    def train(self, stage: str) -> None:
        """Train a stage that has a loop here; configured.train is for the others."""
        fit = getattr(self, stage)()
        if self.options.compile and hasattr(fit.modules, "compile_network"):
            fit.modules.compile_network()
        if fit.step == 0:
            self.gate(stage)
        fit.run(stop_at=self.options.stop_at)
        self.draw_curves()

    def plan(self, stage: str) -> drawn_folders.Plan:
        """What is drawn for a configured stage."""
        raise NotImplementedError

    def start(self, stage: str) -> list[str]:
        """Settings that say what a configured stage starts from."""
        raise NotImplementedError

    def result(self, stage: str) -> Path:
        """The file that a configured stage wrote."""
        return self.work / stage / f"{stage}.safetensors"

    def draw_curves(self) -> None:
        loss_curve({s: self.losses(s) for s in self.stages if self.began(s)}, self.work / "loss.png")

    def gate(self, stage: str) -> None:
        """Look at what a stage builds on before it starts, and print a warning where it is not good enough."""

    def began(self, stage: str) -> bool:
        return (self.result(stage) if stage in self.configured else self.work / f"{stage}.pt").exists()

    def losses(self, stage: str) -> list[float]:
        if stage in self.configured:
            return [line["loss"] for line in self.steps_of(stage)]
        return json.loads((self.work / f"{stage}.json").read_text())

    def seconds(self, stage: str) -> float:
        """What was spent on a stage."""
        if stage in self.configured:
            return self.steps_of(stage)[-1]["seconds"]
        return torch.load(self.work / f"{stage}.pt", map_location="cpu", weights_only=True)["elapsed"]

    def steps_of(self, stage: str) -> list[dict]:
        """What a configured stage's run noted of each step."""
        lines = (self.work / stage / "history.jsonl").read_text(encoding="utf-8").splitlines()
        return [step for step in map(json.loads, lines) if "loss" in step]

    def cached(self, name: str, make) -> dict[str, torch.Tensor]:
        """The tensors in the working folder's file of that name, made at the first call."""
        path = self.work / f"{name}.safetensors"
        if not path.exists():
            safetensors.torch.save_file(make(), path)
        return safetensors.torch.load_file(path)

    def keep(self, stage: str) -> None:
        """Copy what a configured stage wrote to where models are."""
        path = self.options.output / self.files[stage]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.result(stage), path)
        print(f"train: wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")

    def write(self, stage: str, tensors: dict[str, torch.Tensor], config: dict, folder: Path | None = None) -> None:
        path = (folder or self.options.output) / self.files[stage]
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt", "config": json.dumps(config)})
        print(f"train: wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")

    def file_table(self) -> list[str]:
        """Lines of a table of the written files: size, parameters, sum."""
        lines = ["| file | MB | parameters | sha256 |", "|---|---|---|---|"]
        for name in self.files.values():
            path = self.options.output / name
            if path.exists():
                count = sum(v.numel() for k, v in safetensors.torch.load_file(path).items() if k != "spiece_model")
                data = path.read_bytes()
                lines.append(f"| {name} | {len(data) / 1e6:.2f} | {count:,} | `{hashlib.sha256(data).hexdigest()}` |")
        return lines

    def history(self) -> str:
        """A sentence on the steps and minutes of each stage; with --further, behind what the chapter says so far."""
        parts = []
        for stage in filter(self.began, self.stages):
            parts.append(f"{stage} {len(self.losses(stage))} steps, {self.seconds(stage) / 60:.0f} minutes")
        new = f"{'; '.join(parts)}. {self.options.note}".rstrip()
        if not self.options.further:
            return "Training: " + new
        lines = chapters_of(self.options.output / "README.md").get(self.title, "").splitlines()
        before = next((line for line in lines if line.startswith("Training: ")), "Training: not noted.")
        return before if not parts or new in before else f"{before} Then further: {new}"


    def keep_curve(self, name: str) -> None:
        """Copy the working folder's loss curve to the models, of what was trained further beside that of the first training."""
        if (self.work / "loss.png").exists():
            shutil.copy(self.work / "loss.png", self.options.output / (f"further_{name}" if self.options.further else name))

    def curves(self, name: str) -> list[str]:
        """A line of Markdown with the kept curves."""
        kept = [file for file in (name, f"further_{name}") if (self.options.output / file).exists()]
        return [" ".join(f"![loss]({file})" for file in kept)]


def read_file(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, config) of a written file."""
    with safetensors.safe_open(path, "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, json.loads(file.metadata()["config"])


def half(module: nn.Module | dict) -> dict[str, torch.Tensor]:
    tensors = module.state_dict() if isinstance(module, nn.Module) else module
    return {k: v.detach().half().cpu().contiguous() for k, v in tensors.items()}


def whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.float() for k, v in tensors.items()}


def chapters_of(path: Path) -> dict[str, str]:
    """A README's chapters by their titles, in order; none where there is no file."""
    text = "\n" + path.read_text() if path.exists() else ""
    return {part.partition("\n")[0]: "# " + part.rstrip() + "\n" for part in text.split("\n# ")[1:]}


def write_chapter(path: Path, title: str, lines: list[str]) -> None:
    """Write a chapter into a README, in place of the one of that title, if any."""
    text = "\n".join([f"# {title}", "", *lines]).rstrip() + "\n"
    path.write_text("\n".join((chapters_of(path) | {title: text}).values()))
