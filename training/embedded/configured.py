"""Stages that are trained as people train: by the trainer, from a shipped configuration and a folder of pictures or clips with
captions, which is drawn first.

Apart from recipe.py, since it needs all that the trainer needs, and measuring does without.
"""
from __future__ import annotations

import os

from . import drawn_folders
from .recipe import Recipe
from .. import config_files, session

FEW = 100  # steps: fewer are a look at whether it runs, without warm-up and pictures on the way


def train(recipe: Recipe, stage: str) -> None:
    """Draw what the stage is trained on, and train; a run that was stopped goes on. Raises SystemExit for options that are for
    other stages, and what session.train raises."""
    options = recipe.options
    if options.minutes or options.stop_at:
        raise SystemExit(f"train: stage '{stage}' is trained from configs/{recipe.configured[stage]}.yaml, whose schedule is in "
                         "steps: give --steps in place of --minutes or --stop-at. Ctrl-C stops and saves.")
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    seed = recipe.seed(stage)
    data = recipe.work / f"{stage}_data{f'_{seed:08x}' if seed else ''}"  # other drawings are other files
    drawn_folders.write(data, options.cached or recipe.drawn[stage], recipe.plan(stage), recipe.suffix, seed)
    if not recipe.began(stage):
        recipe.gate(stage)
    settings = [f"data.path={data}", f"data.cache={recipe.work / 'cache'}", f"output.folder={recipe.work}", f"output.name={stage}",
                *recipe.start(stage)]
    if options.steps:
        settings.append(f"train.steps={options.steps}")
        if options.steps < FEW:
            settings += ["train.warmup=0", "validation.every=null", "validation.prompts=[]"]
    if options.compile:
        settings.append("train.compile=inductor")
    loaded = config_files.load([recipe.configured[stage]], settings, environ={})
    if options.further:
        loaded = config_files.load([recipe.configured[stage]], [*settings, f"train.lr={recipe.rate(loaded.config.train.lr):g}"], environ={})
    session.train(loaded)
    recipe.draw_curves()
