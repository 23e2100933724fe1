"""The training of the embedded tiny edge ControlNet: the tiny Sana, frozen, learns to draw along the outline it is shown.

The prompt says colours and shape; where and how large, the edges alone say. Half of the pictures have the layouts that the
tiny Sana was trained on, half have any place and size, so that the outline and not the nearest layout is what counts.
"""
from __future__ import annotations

import datetime
import json
import random
import shutil

import numpy as np
import torch

from . import drawn_folders, gemma, transformer
from .autoencoder import LATENT_SCALE, to_numpy
from .loop import contact_sheet, loss_curve
from .recipe import Recipe, read_file, whole, write_chapter
from .sana import files_of, load_models
from ..objectives.controlnet import Controlled
from ...evaluation.drawn import judge, shapes
from ...sana_core import controlnet_checkpoint
from ...sana_core.controlnet import SanaControlNet

BLOCKS = 3  # as configs/train/tiny_controlnet.yaml has it
THICKNESS = (1.0, 3.0)  # pixels; half of the edges are of the thinnest and hard, like Canny's
REACH, SMALLEST, LARGEST = 50.0, 38.0, 76.0  # pixels: of centres around the picture's, and radii, of free layouts
WANTED = 0.7  # intersection over union from which a shape counts as one that follows the edges
CASES = 32
FILE = "controlnet/sanacog_tiny_sana_controlnet.safetensors"


class ControlNet(Recipe):
    """One stage. The tiny Sana's files are taken from the folder that --source names."""

    name = "controlnet"
    stages = ("controlnet",)
    configured = {"controlnet": "train/tiny_controlnet"}
    drawn = {"controlnet": 6144}
    files = {"controlnet": FILE}
    title = "The embedded tiny edge ControlNet"
    further = ("controlnet",)

    def plan(self, stage: str) -> drawn_folders.Plan:
        return plan

    def start(self, stage: str) -> list[str]:
        source = self.options.source
        return files_of(source) + ([f"train.controlnet={source / FILE}"] if self.options.further else [])

    def export(self) -> None:
        """Write the file, measure what it can do as it is on disk, and write its chapter and pictures."""
        if not self.from_file("controlnet"):
            self.keep("controlnet")
            loss_curve({"controlnet": self.losses("controlnet")}, self.options.output / "controlnet_loss.png")
        models = load_models(self.options.source, self.device)
        network = load_controlnet(self.options.output / FILE, self.device)
        figures, sheet = evaluate(network, *models, count=min(CASES, self.options.cases or CASES))
        (self.work / "figures.json").write_text(json.dumps(figures, indent=1))
        contact_sheet(sheet, self.work / "controlnet.png")
        write_chapter(self.options.output / "README.md", self.title, self.chapter(figures))
        shutil.copy(self.work / "controlnet.png", self.options.output)
        print(json.dumps(figures, indent=1))

    def chapter(self, figures: dict) -> list[str]:
        lines = [
            f"For the tiny Sana: white edges on black, 1 to 3 pixels wide, say where the outline is. {BLOCKS} copied blocks, in the wiring and",
            "the layout of diffusers' SanaControlNetModel (with the tiny Sana's query-key norm). `python run.py train tiny-controlnet` trains it.", "",
            *self.file_table(),
            "", f"Measured on {datetime.date.today().isoformat()} on the files as they are here, in fp32 on {self.device.type.upper()}:", "",
            f"| {figures['cases']} pictures, Euler, 20 steps, CFG 4.5 | IoU over {WANTED:g} | mean IoU | colours right |", "|---|---|---|---|"]
        for row in ("with control", "without", "reconstructions"):
            found = figures[row]
            lines.append(f"| {row} | {found['follows']:.3f} | {found['mean']:.3f} | {found['colour+background']:.3f} |")
        return lines + [
            "", "Each picture is a held-out combination of colour, shape and background at a place and in a size of its own; the",
            "edges are drawn along its outline, a pixel wide, and the prompt, such as `a red circle on a blue background`, tells neither place",
            "nor size. IoU is that of the drawn shape's mask with the given one's. Without control: the same prompts and seeds. Reconstructions:",
            "the given pictures through the autoencoder, which is what could be reached at most.", "",
            self.history(), "", "![loss](controlnet_loss.png)", "",
            "Edges, with control, without control:", "", "![with and without control](controlnet.png)"]


def edges(distance: torch.Tensor, thickness: torch.Tensor, hard: torch.Tensor | None = None) -> torch.Tensor:
    """Control pictures (B, 3, H, W) in [-1, 1], white lines of `thickness` (B,) pixels on black, of signed distances
    (B, 1, H, W). hard (B,): where lines have no soft edges, as Canny's, which are a pixel wide."""
    line = (thickness[:, None, None, None] / 2 + 0.5 - distance.abs()).clamp(0, 1)
    if hard is not None:
        line = torch.where(hard[:, None, None, None], (line >= 0.5).float(), line)
    return (line * 2 - 1).expand(-1, 3, -1, -1)


def layouts(scenes: torch.Tensor, free: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres (B, 2) and radii (B,) in pixels: of the scenes' own layouts, jittered, but where `free` (B,), anywhere."""
    count = len(scenes)
    centre = torch.tensor(shapes.CENTRES)[scenes[:, shapes.PLACE]] + shapes.JITTER * (2 * torch.rand(count, 2, generator=generator) - 1)
    anywhere = REACH * (2 * torch.rand(count, 2, generator=generator) - 1)
    radius = torch.tensor(shapes.RADII)[scenes[:, shapes.SIZE]] * (0.95 + 0.1 * torch.rand(count, generator=generator))
    any_size = SMALLEST + (LARGEST - SMALLEST) * torch.rand(count, generator=generator)
    return torch.where(free[:, None], anywhere, centre) + shapes.PICTURE / 2, torch.where(free, any_size, radius)


def paint(scenes: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] of the scenes' colours inside and outside of outlines."""
    ink, paper = (shapes.RGB[scenes[:, i]][:, :, None, None] * 2 - 1 for i in (shapes.COLOUR, shapes.BACKGROUND))
    return torch.lerp(paper, ink, (0.5 - distance).clamp(0, 1))


def bare_prompt(scene) -> str:
    """Colours and shape, neither size nor place."""
    colour, shape, background = (int(v) for v in scene[:3])
    return f"a {shapes.COLOURS[colour]} {shapes.SHAPES[shape]} on a {shapes.COLOURS[background]} background"


def encode(autoencoder, pictures: torch.Tensor) -> torch.Tensor:
    device = next(autoencoder.parameters()).device
    return autoencoder.encode(pictures.to(device).contiguous(memory_format=torch.channels_last)) * LATENT_SCALE


def plan(count: int, generator: torch.Generator, rng: random.Random):
    """drawn_folders.Plan of pictures with their edges."""
    scenes = shapes.sample_scenes(count, generator)
    free = torch.rand(count, generator=generator) < 0.5
    layout = layouts(scenes, free, generator)
    low, high = THICKNESS
    hard = torch.rand(count, generator=generator) < 0.5
    thickness = torch.where(hard, low, low + (high - low) * torch.rand(count, generator=generator))
    said = [bare_prompt(scene) if anywhere or rng.random() < 0.5 else shapes.any_prompt(scene, rng)[0]
            for scene, anywhere in zip(scenes.tolist(), free.tolist())]

    def draw():
        distance = shapes.distances(scenes[:, shapes.SHAPE], *layout)
        return {drawn_folders.SHOWN: paint(scenes, distance), drawn_folders.CONDITION: edges(distance, thickness, hard)}

    return said, draw


def cases(count: int = CASES) -> tuple[torch.Tensor, torch.Tensor]:
    """Scenes (count, 5), held-out combinations of the main shapes, of which size and place mean nothing, and the signed
    distances (count, 1, 256, 256) of their outlines, each at a place and of a size of its own."""
    generator = torch.Generator().manual_seed(32)
    scenes = shapes.evaluation_scenes()[0][:count]
    return scenes, shapes.distances(scenes[:, shapes.SHAPE], *layouts(scenes, torch.ones(count, dtype=torch.bool), generator))


@torch.no_grad()
def evaluate(network, text, tokenizer, autoencoder, base, *, count: int = CASES) -> tuple[dict, torch.Tensor]:
    """Draw the cases with control and without, case i from seed i -> (figures, for contact_sheet)."""
    scenes, distance = cases(count)
    control, given = edges(distance, torch.ones(count), torch.ones(count, dtype=torch.bool)), paint(scenes, distance)
    masks = [judge.shape_mask(p) for p in to_numpy(given)]
    states, mask = gemma.encode_prompts(text, tokenizer, [bare_prompt(s) for s in scenes], False)
    empty = gemma.encode_prompts(text, tokenizer, [""], False)
    hint, both = encode(autoencoder, control), Controlled(base, network)

    def controlled(x, timestep, states, mask):
        return both(x, timestep, states, mask, control=hint.repeat(len(x) // len(hint), 1, 1, 1))

    latents = {name: transformer.sample(model, states, mask, *empty, seeds=list(range(count)))
               for name, model in (("with control", controlled), ("without", base))}
    drawn = {name: torch.cat([autoencoder.decode(part / LATENT_SCALE).float().cpu() for part in z.split(16)])
             for name, z in {**latents, "reconstructions": encode(autoencoder, given)}.items()}
    figures: dict = {"cases": count}
    for name, pictures in drawn.items():
        pictures = to_numpy(pictures)
        overlaps = np.array([judge.overlap(judge.shape_mask(p), m) for p, m in zip(pictures, masks)])
        seen = judge.agreement(pictures, scenes)
        figures[name] = {"follows": float((overlaps > WANTED).mean()), "mean": float(overlaps.mean()),
                         "colour+background": float((np.array(seen["colour"]) & np.array(seen["background"])).mean())}
    shown = [torch.cat([row[i : i + 8] for row in (control, drawn["with control"], drawn["without"])]) for i in range(0, min(count, 16), 8)]
    return figures, torch.cat(shown)


def load_controlnet(path, device=torch.device("cpu")) -> SanaControlNet:
    """The exported file in fp32."""
    network = SanaControlNet(transformer.PARAMS, BLOCKS, "diffusers")
    network.load_state_dict(whole(controlnet_checkpoint.to_canonical(read_file(path)[0], "diffusers")))
    return network.eval().to(device)
