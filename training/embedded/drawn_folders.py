"""Folders of drawn pictures with captions, in the layout of `datasets`' image folders: what people train on, to train on."""
from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from .loop import to_bytes

PART = 32  # pictures that are drawn at a time, each part by seeds of its own
# Plan(count, generator, rng) -> (captions, draw); draw() -> {column: pictures (count, 3, H, W) in [-1, 1]}
Plan = Callable[[int, torch.Generator, random.Random], tuple[list[str], Callable[[], dict[str, torch.Tensor]]]]
PICTURE, CONDITION = "file_name", "conditioning_image"  # columns


def write(folder: Path, count: int, plan: Plan) -> None:
    """Draw pictures into column/00000.png and so on, and metadata.jsonl. What is there already is not drawn again."""
    lines = []
    for start in tqdm(range(0, count, PART), desc="drawing", disable=count < 1000, mininterval=5):
        captions, draw = plan(min(PART, count - start), torch.Generator().manual_seed(start), random.Random(start))
        names = [f"{i:05}.png" for i in range(start, start + len(captions))]
        if not all((folder / PICTURE / name).exists() for name in names):
            drawn = draw()
            for column in sorted(drawn, key=[CONDITION, PICTURE].index):  # the pictures themselves come last, and stand for all
                (folder / column).mkdir(parents=True, exist_ok=True)
                for name, picture in zip(names, drawn[column], strict=True):
                    part = folder / column / "part.png"
                    Image.fromarray(to_bytes(picture)).save(part, compress_level=1)
                    os.replace(part, folder / column / name)
        columns = [column for column in (PICTURE, CONDITION) if (folder / column).exists()]
        lines += [{column: f"{column}/{name}" for column in columns} | {"text": caption} for name, caption in zip(names, captions)]
    part = folder / "metadata.part"
    part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(part, folder / "metadata.jsonl")
