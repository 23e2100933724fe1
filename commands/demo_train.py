"""python run.py demo-train: the newcomer's proof. It draws pictures of shapes with an outline into a folder, with captions that
say nothing of it, trains a LoRA of the embedded Sana on the folder, and shows and counts what the LoRA does."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from ..training import config_files, recipe, sampling, session, text, validation
from ..evaluation.drawn import judge, shapes
from ..training.embedded import drawn_folders, lora
from ..training.models import Models
from . import train

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "train/example"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py demo-train", description="Draw pictures with captions into a folder, train a LoRA of the embedded Sana on "
        "them on this computer's CPU, and write what it draws with the LoRA and without.")
    parser.add_argument("settings", nargs="*", metavar="section.key=value",
                        help="settings that win over configs/train/example.yaml")
    parser.add_argument("--pictures", type=int, default=192, help="pictures to draw (default: %(default)s)")
    parser.add_argument("--cases", type=int, default=16, help="prompts to judge by (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "demo-train", help="folder of all that is written "
                        "(default: output/demo-train)")
    return parser


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    began, pictures = time.monotonic(), options.output / "pictures"
    drawn_folders.write(pictures, options.pictures, lora.plan)
    print(f"{options.pictures} pictures with captions in {pictures}")
    try:
        loaded = config_files.load([CONFIG], [f"data.path={pictures}", f"output.folder={options.output}", *options.settings])
    except ValueError as error:
        print(error)
        return 2
    if status := train.run(loaded):
        return status
    print("\n".join(show(loaded.config, options.output, options.cases)))
    print(f"{(time.monotonic() - began) / 60:.1f} minutes in all")
    return 0


def show(config, folder: Path, cases: int) -> list[str]:
    """Lines on how many held-out prompts are drawn outlined, with the LoRA and without; writes with_and_without.png."""
    scenes, prompts, _ = shapes.evaluation_scenes()
    fits = lora.can_be_outlined(scenes).nonzero()[:cases, 0]
    scenes, prompts = scenes[fits], [prompts[i] for i in fits]
    lines_of = lora.outline_colours(scenes)
    models, made = Models(config.model), None
    encoder = models.text_encoder()
    texts, null = [encode(encoder, prompt) for prompt in prompts], encode(encoder, "")
    lines, drawn = [], {}
    for name in ("without", "with"):
        network = models.transformer(torch.float32)
        if name == "with":
            made = recipe.build(config, models)
            session.load_weights(made, session.folder_of(config))
            network = made.network.eval()
            made.trained.eval()
        latents = {str(i): [sampling.sana(network, models.params, config.sampling, pair, null, (8, 8), i, config.sampling.steps,
                                          config.sampling.guidance, torch.device("cpu"))] for i, pair in enumerate(texts)}
        decoded = validation.decode(models, models.scale, torch.device("cpu"))(latents)
        drawn[name] = [validation.to_bytes(several[0][:, 0]) for several in decoded.values()]
        found = [judge.outlined(picture / 255, int(scene[shapes.COLOUR]), int(line))
                 for picture, scene, line in zip(drawn[name], scenes, lines_of)]
        lines.append(f"{name} the LoRA: {sum(found)} of {len(found)} shapes have an outline in the right colours")
    path = folder / "with_and_without.png"
    shown = min(8, len(prompts))
    validation.sheet([drawn["without"][:shown], drawn["with"][:shown]],
                     ["without the LoRA", "with the LoRA, same prompts and seeds"], path, most=128)
    return [*lines, f"the pictures: {path}"]


def encode(encoder: text.Gemma, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    states, mask = encoder.encode(prompt)
    return states[None], mask[None]
