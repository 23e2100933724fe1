"""python run.py train tiny-...: trains the embedded models of one family from nothing, resumes, stops in time, writes models/."""
from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..training.embedded import configured
from ..training.embedded.cogvideox import CogVideoX
from ..training.embedded.controlnet import ControlNet
from ..training.embedded.lora import Lora
from ..training.embedded.sana import Sana
from ..training.embedded.sana_video import SanaVideo
from ..training.embedded.sprint import Sprint

FAMILIES = {"tiny-sana": Sana, "tiny-cogvideox": CogVideoX, "tiny-sprint": Sprint,
            "tiny-controlnet": ControlNet, "tiny-lora": Lora, "tiny-sana-video": SanaVideo}
MODELS = Path(__file__).resolve().parents[1] / "models"


def arguments(args: list[str]) -> argparse.Namespace:
    stages = {name: family.stages for name, family in FAMILIES.items()}
    every = [stage for names in stages.values() for stage in names]
    parser = argparse.ArgumentParser(
        prog="run.py train", description="Train the embedded tiny models on drawn pictures and clips.",
        epilog="Stages: " + "; ".join(f"{name}: {', '.join(names)}" for name, names in stages.items()))
    parser.add_argument("model", choices=FAMILIES, help="which family to train")
    parser.add_argument("--stage", choices=[*dict.fromkeys(every), "all", "export"], default="all",
                        help="one stage alone (those before it must be done), all of them, or only write the files")
    parser.add_argument("--minutes", type=float, help="time to spend in all, resumed runs together; the schedules shrink to it. Not for stages that "
                        "are trained from configs/train, which take --steps")
    parser.add_argument("--steps", type=int, help="length of each stage's schedule in steps, instead of the recipe's")
    parser.add_argument("--stop-at", type=int, help="stop each stage at this step, as if interrupted")
    parser.add_argument("--cached", "--pictures", type=int, help="pictures or clips that a transformer, Sprint, ControlNet or LoRA is trained on")
    parser.add_argument("--cases", type=int, help="evaluation prompts drawn for the report, 8 or more; all unless given")
    parser.add_argument("--note", default="", help="a sentence on this training for models/README.md")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="torch.compile the networks: pays on a GPU and in long runs")
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs; without it, training goes on where it stopped")
    parser.add_argument("--further", action="store_true",
                        help="train the files in --source further, one --stage at a time; then --stage export writes and measures them")
    parser.add_argument("--resume", action="store_true", help="go on where training stopped; this is what happens anyway")
    parser.add_argument("--work", type=Path, help="folder of checkpoints, curves and sheets; output/train/FAMILY unless given")
    parser.add_argument("--source", type=Path, default=MODELS, help="folder of the tiny models that Sprint, ControlNet, LoRA and SANA-Video start from, and --further")
    parser.add_argument("--output", type=Path, default=MODELS, help="folder that gets the trained files")
    options = parser.parse_args(args)
    if options.stage not in (*stages[options.model], "all", "export"):
        parser.error(f"{options.model} has no stage {options.stage!r}, but: {', '.join(stages[options.model])}")
    return options


def main(args: list[str]) -> int:
    """Run the stages asked for, then export. Ctrl-C leaves; the same command goes on from the last checkpoint."""
    options = arguments(args)
    if options.threads:
        torch.set_num_threads(options.threads)
    recipe = FAMILIES[options.model](options)
    try:
        for stage in recipe.stages:
            if options.stage in (stage, "all"):
                if stage in recipe.configured:
                    configured.train(recipe, stage)
                else:
                    recipe.train(stage)
        if options.stage in ("all", "export"):
            recipe.export()
    except KeyboardInterrupt:
        print("\ntrain: stopped; the same command goes on from the last checkpoint.")
        return 130
    return 0
