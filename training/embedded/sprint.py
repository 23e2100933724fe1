"""The training of the embedded tiny Sprint: one to four steps instead of twenty, distilled from the tiny Sana's trajectories."""
from __future__ import annotations

import datetime
import json
import shutil
from dataclasses import replace

import torch

from . import drawn_folders, transformer
from .loop import contact_sheet, loss_curve
from .recipe import Recipe, read_file, whole, write_chapter
from .sana import FILES, files_of, load_models, plan
from ...evaluation.drawn import shapes
from ...sana_core import checkpoint
from ...sana_core.sampling import sample_scm, sprint_sigmas
from ...sana_core.transformer import SanaTransformer

PARAMS = replace(transformer.PARAMS, guidance_embeds=True)
STEPS = (1, 2, 4)  # of the report
FILE = "diffusion_models/sanacog_tiny_sana_sprint.safetensors"


class Sprint(Recipe):
    """One stage. The tiny Sana's files are taken from the folder that the trained file goes to."""

    name = "sprint"
    stages = ("sprint",)
    configured = {"sprint": "train/tiny_sprint"}
    drawn = {"sprint": 16384}
    files = {"sprint": FILE}
    title = "The embedded tiny Sprint"
    further = ("sprint",)

    def plan(self, stage: str) -> drawn_folders.Plan:
        return plan

    def start(self, stage: str) -> list[str]:
        """The student begins as its teacher."""
        source = self.options.source
        begin = [f"model.transformer={source / FILE}"] if self.options.further else []
        return [*files_of(source), *begin, f"train.teacher={source / FILES['transformer']}"]

    def export(self) -> None:
        """Write the file, measure what it can do as it is on disk, and write its chapter and pictures."""
        if not self.from_file("sprint"):
            self.keep("sprint")
            loss_curve({"sprint": self.losses("sprint")}, self.options.output / "sprint_loss.png")
        text, tokenizer, pictures, teacher = load_models(self.options.source, self.device)
        student, cases = load_sprint(self.options.output / FILE, self.device), self.options.cases or 64
        figures, sheets = compare(student, teacher, pictures, text, tokenizer, cases)
        for steps, sheet in sheets.items():
            contact_sheet(sheet[:16], self.work / f"sprint_{steps}.png", captions=shapes.evaluation_scenes()[1][:16])
        (self.work / "figures.json").write_text(json.dumps(figures, indent=1))
        write_chapter(self.options.output / "README.md", self.title, self.chapter(figures, cases))
        for steps in STEPS[:2]:
            shutil.copy(self.work / f"sprint_{steps}.png", self.options.output)
        print(json.dumps(figures, indent=1))

    def chapter(self, figures: dict, cases: int) -> list[str]:
        names = ["colour", "background", "shape", "size", "place", "colour+background", "colour+background+shape", "fit", *transformer.SEVERAL]
        lines = [
            "The tiny Sana in one to four steps, with guidance as an input and no negative prompt, as Sana Sprint has it. It goes",
            "with the tiny Sana's text encoder and autoencoder. `python run.py train tiny-sprint` distils it from the tiny Sana.", "",
            *self.file_table(),
            "", f"Measured on {datetime.date.today().isoformat()} on the files as they are here, in fp32 on {self.device.type.upper()}:", "",
            f"| {cases} held-out prompts, guidance 4.5, seeds 0 to {cases - 1} | " + " | ".join(names) + " |",
            "|" + "---|" * (len(names) + 1)]
        for row, found in figures.items():
            lines.append(f"| {row} | " + " | ".join(f"{found[n]:.3f}" for n in names) + " |")
        return lines + [
            "", "The prompts and the judge are those of the tiny Sana, whose own row is the first. Two shapes and one to three: the share of",
            "those prompts, as in its chapter, that everything is right of.", "",
            self.history(), "", "![loss](sprint_loss.png)", "", "![held-out prompts, one step](sprint_1.png)", "", "![held-out prompts, two steps](sprint_2.png)"]


@torch.no_grad()
def sample(model: SanaTransformer, states, mask, empty_states, empty_mask, *, steps: int, guidance: float,
           seeds: list[int]) -> torch.Tensor:
    """transformer.sample for Sprint; the empty prompt is not needed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def noise(*_):
        return torch.stack([torch.randn(32, 8, 8, generator=g) for g in generators]).to(states.device)

    def denoised(x, sigma):
        v = model(x, sigma, states, mask, torch.full((len(x),), guidance, device=x.device))
        return x - sigma[:, None, None, None] * v

    return sample_scm(denoised, noise(), sprint_sigmas(steps), noise_sampler=noise)


def compare(student, teacher, pictures, text, tokenizer, count: int = 64) -> tuple[dict, dict[int, torch.Tensor]]:
    """The teacher in 20 steps and the student in each of STEPS on the same held-out prompts, and, as one figure each, those of
    several shapes -> ({who: figures}, {steps: the student's pictures})."""
    figures, sheets = {}, {}

    def examine(who, model, **settings):
        figures[who], sheet = transformer.evaluate(model, pictures, text, tokenizer, count=count, **settings)
        several, _ = transformer.evaluate_several(model, pictures, text, tokenizer, count=count, **settings)
        figures[who] |= {name: found["all"] for name, found in several.items()}
        return sheet

    examine("teacher, 20 steps", teacher)
    for steps in STEPS:
        sheets[steps] = examine(f"{steps} step{'s' * (steps > 1)}", student, steps=steps, sampler=sample)
    return figures, sheets


def load_sprint(path, device=torch.device("cpu")) -> SanaTransformer:
    """The exported file in fp32."""
    model = SanaTransformer(PARAMS)
    model.load_state_dict(whole(checkpoint.to_canonical(read_file(path)[0], "diffusers")))
    return model.eval().to(device)
