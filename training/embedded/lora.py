"""The training of the embedded tiny LoRA: on the tiny Sana, frozen, pictures of shapes with an outline around them.

The prompts say nothing of it: the LoRA is a style. Outlines are black, and white where the shape or the background is
black; black with white, which leaves neither, does not occur.
"""
from __future__ import annotations

import copy
import datetime
import json
import random
import shutil

import torch
from torch import nn

from . import controlnet, drawn_folders, gemma, transformer
from .autoencoder import LATENT_SCALE, to_numpy
from .loop import contact_sheet, loss_curve
from .recipe import Recipe, write_chapter
from .sana import files_of, load_models
from .. import adapter_files, adapters
from ...evaluation.drawn import judge, shapes

RANK = 16  # as configs/train/tiny_lora.yaml has it
WIDTH = 16.0  # pixels, of the outline
BLACK, WHITE = shapes.COLOURS.index("black"), shapes.COLOURS.index("white")
CASES = 32
FILE = "loras/sanacog_tiny_sana_outline_lora.safetensors"


class Lora(Recipe):
    """One stage. The tiny Sana's files are taken from the folder that --source names."""

    name = "lora"
    stages = ("lora",)
    configured = {"lora": "train/tiny_lora"}
    drawn = {"lora": 1024}
    files = {"lora": FILE}
    title = "The embedded tiny LoRA"

    def plan(self, stage: str) -> drawn_folders.Plan:
        return plan

    def start(self, stage: str) -> list[str]:
        return files_of(self.options.source)

    def export(self) -> None:
        """Write the file, measure what it can do as it is on disk, and write its chapter and pictures."""
        if not self.from_file("lora"):
            self.keep("lora")
            loss_curve({"lora": self.losses("lora")}, self.options.output / "lora_loss.png")
        models = load_models(self.options.source, self.device)
        figures, sheet = evaluate(load_lora(self.options.output / FILE, models[3]), *models,
                                  count=min(CASES, self.options.cases or CASES))
        (self.work / "figures.json").write_text(json.dumps(figures, indent=1))
        contact_sheet(sheet, self.work / "lora.png")
        write_chapter(self.options.output / "README.md", self.title, self.chapter(figures))
        shutil.copy(self.work / "lora.png", self.options.output)
        print(json.dumps(figures, indent=1))

    def chapter(self, figures: dict) -> list[str]:
        return [
            f"For the tiny Sana: an outline around every shape, {WIDTH:g} pixels wide, black, or white where the shape or the background is black. Rank {RANK} on",
            "every linear layer of the blocks, with diffusers' key names. `python run.py train tiny-lora` trains it.", "",
            *self.file_table(),
            "", f"Measured on {datetime.date.today().isoformat()} on the files as they are here, in fp32 on {self.device.type.upper()}:", "",
            f"| {figures['cases']} held-out prompts, Euler, 20 steps, CFG 4.5 | outlined, in the right colours | background right |", "|---|---|---|",
            *(f"| {row} | {figures[row]['outlined']:.3f} | {figures[row]['background']:.3f} |"
              for row in ("with the LoRA", "without the LoRA", "outlined pictures", "pictures without outlines")),
            "", "`evaluation/drawn/judge.py` judges from pixels: a body of the shape's colour, and cells of the outline's colour around it. The last two rows are true",
            "pictures through the autoencoder: what the judge can be trusted with.", "",
            self.history(), "", "![loss](lora_loss.png)", "",
            "With the LoRA, and without, from the same prompts and seeds:", "", "![with and without the LoRA](lora.png)"]


def load_lora(path, base: nn.Module) -> nn.Module:
    """A copy of `base` with the exported file on it."""
    network = copy.deepcopy(base)
    adapter_files.load(path, adapters.add(network, RANK, RANK, ["all-linear"]))
    return network.eval()


def can_be_outlined(scenes: torch.Tensor) -> torch.Tensor:
    """(N, 5) -> (N,): False where shape and background are black and white."""
    both = scenes[:, [shapes.COLOUR, shapes.BACKGROUND]].sort(dim=1).values
    return ~(both == torch.tensor(sorted((BLACK, WHITE)))).all(dim=1)


def outline_colours(scenes: torch.Tensor) -> torch.Tensor:
    """(N, 5) -> (N,), indices into shapes.COLOURS."""
    black_is_taken = (scenes[:, [shapes.COLOUR, shapes.BACKGROUND]] == BLACK).any(dim=1)
    return torch.where(black_is_taken, WHITE, BLACK)


def sample_scenes(count: int, generator: torch.Generator) -> torch.Tensor:
    """shapes.sample_scenes of training, without those that no outline fits."""
    scenes = shapes.sample_scenes(2 * count + 8, generator)
    return scenes[can_be_outlined(scenes)][:count]


def plan(count: int, generator: torch.Generator, rng: random.Random):
    """drawn_folders.Plan of outlined pictures."""
    scenes = sample_scenes(count, generator)
    return [shapes.any_prompt(scene, rng)[0] for scene in scenes.tolist()], lambda: {drawn_folders.SHOWN: draw(scenes, generator)}


def draw(scenes: torch.Tensor, generator: torch.Generator, width: float = WIDTH) -> torch.Tensor:
    """Pictures (B, 3, 256, 256) in [-1, 1] of the scenes, jittered as in the base's training, each with an outline of
    `width` pixels around its shape."""
    layout = controlnet.layouts(scenes, torch.zeros(len(scenes), dtype=torch.bool), generator)
    distance = shapes.distances(scenes[:, shapes.SHAPE], *layout)
    line = torch.minimum(distance + 0.5, width + 0.5 - distance).clamp(0, 1)
    colour = shapes.RGB[outline_colours(scenes)][:, :, None, None] * 2 - 1
    return torch.lerp(controlnet.paint(scenes, distance), colour.expand(-1, -1, *distance.shape[2:]), line)


@torch.no_grad()
def evaluate(network, text, tokenizer, autoencoder, base, *, count: int = CASES) -> tuple[dict, torch.Tensor]:
    """Draw held-out prompts with the LoRA and without, prompt i from seed i -> (figures, for contact_sheet)."""
    scenes, prompts, _ = shapes.evaluation_scenes()
    fits = can_be_outlined(scenes).nonzero()[:count, 0]
    scenes, prompts = scenes[fits], [prompts[i] for i in fits]
    states, mask = gemma.encode_prompts(text, tokenizer, prompts, False)
    empty = gemma.encode_prompts(text, tokenizer, [""], False)
    latents = {name: transformer.sample(model, states, mask, *empty, seeds=list(range(len(scenes))))
               for name, model in (("with the LoRA", network), ("without the LoRA", base))}
    for name, width in (("outlined pictures", WIDTH), ("pictures without outlines", -1.0)):
        latents[name] = controlnet.encode(autoencoder, draw(scenes, torch.Generator().manual_seed(7), width))
    drawn = {name: torch.cat([autoencoder.decode(part / LATENT_SCALE).float().cpu() for part in z.split(16)])
             for name, z in latents.items()}
    figures: dict = {"cases": len(scenes)}
    for name, pictures in drawn.items():
        pictures = to_numpy(pictures)
        found = [judge.outlined(p, int(s[shapes.COLOUR]), int(line)) for p, s, line in zip(pictures, scenes, outline_colours(scenes))]
        figures[name] = {"outlined": sum(found) / len(found),
                         "background": sum(judge.agreement(pictures, scenes)["background"]) / len(found)}
    shown = [torch.cat([drawn[row][i : i + 8] for row in ("with the LoRA", "without the LoRA")]) for i in range(0, min(len(scenes), 16), 8)]
    return figures, torch.cat(shown)
