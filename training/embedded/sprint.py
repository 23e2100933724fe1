"""The training of the embedded tiny Sprint: one to four steps instead of twenty, distilled from the tiny Sana.

The teacher turns noises into pictures by its whole schedule with guidance; the student learns to name the clean latent
in one call: from that very noise at sigma 1, and from the teacher's latent under new noise at all levels below.
"""
from __future__ import annotations

import datetime
import json
import random
import shutil
from dataclasses import asdict, replace

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from . import gemma, transformer
from .loop import Fit, contact_sheet, loss_curve
from .recipe import Recipe, half, join_prompts, read_file, whole, write_chapter
from .sana import load_models
from ...evaluation.drawn import shapes
from ...sana_core import checkpoint
from ...sana_core.sampling import flow_sigmas, sample_flow_dpm_solver, sample_scm, sprint_sigmas
from ...sana_core.transformer import SanaTransformer

PAIRS, PART = 16384, 1024  # noise and clean latent, in all and in a file of the cache
TEACHER_STEPS = 8  # of the second order solver, which draws as well with them as Euler with twenty
WITH_INSTRUCTION = 0.25  # share of prompts that stand behind the instruction, as in the teacher's training
GUIDANCE = (3.0, 6.0)  # that the teacher is run with, evenly
BATCH = 32
FROM_NOISE = 0.5  # share of training rows that start at sigma 1
LOWEST = 0.2  # sigma of the other rows, evenly up to 0.95
PARAMS = replace(transformer.PARAMS, guidance_embeds=True)
STEPS = (1, 2, 4)  # of the report
FILE = "diffusion_models/sanacog_tiny_sana_sprint.safetensors"


class Sprint(Recipe):
    """One stage. The tiny Sana's files are taken from the folder that the trained file goes to."""

    name = "sprint"
    stages = ("sprint",)
    steps = {"sprint": 6000}
    share = {"sprint": 1.0}
    files = {"sprint": FILE}
    title = "The embedded tiny Sprint"

    def sprint(self) -> Fit:
        def make():
            text, tokenizer, _, teacher = load_models(self.options.source, self.device)
            return Distillation(start_from(teacher), self.pairs(teacher, text, tokenizer), self.device)
        return self.fit("sprint", make, lr=8e-4, average=0.998, split=lambda modules: transformer.matrices(modules.model))

    def pairs(self, teacher, text, tokenizer) -> dict[str, torch.Tensor]:
        count = self.options.cached or PAIRS
        parts = [self.cached(f"pairs_{first}", lambda: make_pairs(teacher, text, tokenizer, min(PART, count - first), first, self.device))
                 for first in range(0, count, PART)]
        return join_prompts(parts)

    def export(self) -> None:
        """Write the file, measure what it can do as it is on disk, and write its chapter and pictures."""
        if not self.from_file("sprint"):
            student = self.done("sprint").modules.model
            self.write("sprint", half(checkpoint.from_canonical(student.state_dict(), "diffusers")), to_config())
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
        names = ["colour", "background", "shape", "size", "place", "colour+background", "colour+background+shape"]
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
            "", "The prompts and the judge are those of the tiny Sana, whose own row is the first. Shapes that come out ragged are",
            "of prompts that name no place, as a rule: the noise decides it there, and this is the harder half for the teacher too.", "",
            self.history(), "", "![loss](sprint_loss.png)", "", "![held-out prompts, one step](sprint_1.png)", "", "![held-out prompts, two steps](sprint_2.png)"]


@torch.no_grad()
def make_pairs(teacher, text, tokenizer, count: int, seed: int, device) -> dict[str, torch.Tensor]:
    """What the teacher makes of `count` noises under as many prompts and guidance scales.

    -> noise and clean (N, 32, 8, 8), states (N, T, 96), mask (N, T), guidance (N,), all but the last in fp16."""
    generator, rng = torch.Generator().manual_seed(1000 + seed), random.Random(1000 + seed)
    scenes = shapes.sample_scenes(count, generator)
    noise = torch.randn(count, 32, 8, 8, generator=generator).half()
    low, high = GUIDANCE
    guidance = low + (high - low) * torch.rand(count, generator=generator)
    empty = gemma.encode_prompts(text, tokenizer, [""], False)
    parts = []
    for rows in tqdm(torch.arange(count).split(64), desc="teacher", mininterval=5):
        said = [shapes.any_prompt(scene, rng)[0] for scene in scenes[rows].tolist()]
        states, mask = gemma.encode_prompts(text, tokenizer, said, rng.random() < WITH_INSTRUCTION)
        scale = guidance[rows].to(device)[:, None, None, None]

        def denoised(x, sigma):
            v_empty = teacher(x, 1000 * sigma, *(e.expand(len(x), *e.shape[1:]) for e in empty))
            v = v_empty + scale * (teacher(x, 1000 * sigma, states, mask) - v_empty)
            return x - sigma[:, None, None, None] * v

        clean = sample_flow_dpm_solver(denoised, noise[rows].float().to(device), flow_sigmas(TEACHER_STEPS))
        parts.append({"noise": noise[rows], "clean": clean.half().cpu(), "states": states.half().cpu(), "mask": mask.half().cpu(),
                      "guidance": guidance[rows]})
    return join_prompts(parts)


def start_from(teacher: SanaTransformer) -> SanaTransformer:
    """A student with the teacher's weights, whose time embedding, which sees sigma and not 1000 sigma, has learnt to say
    what the teacher's says, and whose guidance adds nothing yet."""
    student = SanaTransformer(PARAMS).to(next(teacher.parameters()).device)
    student.load_state_dict({k: v for k, v in teacher.state_dict().items() if ".emb." not in k}, strict=False)
    embed = student.time_embed
    nn.init.zeros_(embed.guidance_embedder.linear_2.weight)
    nn.init.zeros_(embed.guidance_embedder.linear_2.bias)
    sigma = torch.linspace(LOWEST, 1, 65, device=student.proj_out.weight.device)
    with torch.no_grad():
        _, wanted = teacher.time_embed(1000 * sigma, None, torch.float32)
    fit = torch.optim.Adam(embed.timestep_embedder.parameters(), lr=3e-3)
    for _ in range(300):
        fit.zero_grad()
        F.mse_loss(embed(sigma, torch.zeros_like(sigma), torch.float32)[1], wanted).backward()
        fit.step()
    return student.train().requires_grad_(True)


class Distillation(nn.Module):
    """Student and pairs, with the squared error of the clean latent that it names."""

    def __init__(self, student: SanaTransformer, pairs: dict[str, torch.Tensor], device=torch.device("cpu")):
        super().__init__()
        self.model = self.velocity = student
        self.pairs = {k: v.to(device) for k, v in pairs.items()}

    def compile_network(self):
        self.velocity = torch.compile(self.model)

    def loss(self, step: int, progress: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        device = self.pairs["clean"].device
        rows = torch.randint(len(self.pairs["clean"]), (BATCH,), generator=generator).to(device)
        pair = {k: v[rows].float() for k, v in self.pairs.items()}
        sigma = LOWEST + (0.95 - LOWEST) * torch.rand(BATCH, generator=generator)
        start = torch.arange(BATCH) < FROM_NOISE * BATCH
        sigma = torch.where(start, 1.0, sigma).to(device)
        new = torch.randn(pair["clean"].shape, generator=generator).to(device)
        noise = torch.where(start.to(device)[:, None, None, None], pair["noise"], new)
        x = torch.lerp(pair["clean"], noise, sigma[:, None, None, None])
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            v = self.velocity(x, sigma, pair["states"], pair["mask"], pair["guidance"])
        return F.mse_loss(x - sigma[:, None, None, None] * v.float(), pair["clean"])


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
    """The teacher in 20 steps and the student in each of STEPS on the same held-out prompts
    -> ({who: figures}, {steps: the student's pictures})."""
    figures, sheets = {"teacher, 20 steps": transformer.evaluate(teacher, pictures, text, tokenizer, count=count)[0]}, {}
    for steps in STEPS:
        figures[f"{steps} step{'s' * (steps > 1)}"], sheets[steps] = transformer.evaluate(
            student, pictures, text, tokenizer, steps=steps, count=count, sampler=sample)
    return figures, sheets


def load_sprint(path, device=torch.device("cpu")) -> SanaTransformer:
    """The exported file in fp32."""
    model = SanaTransformer(PARAMS)
    model.load_state_dict(whole(checkpoint.to_canonical(read_file(path)[0], "diffusers")))
    return model.eval().to(device)


def to_config() -> dict:
    return transformer.to_config() | asdict(PARAMS) | {"_name": "SanaCog tiny Sprint", "qk_norm": "rms_norm_across_heads"}
