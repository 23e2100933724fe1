"""Folders of drawn pictures or clips with captions, in the layout of `datasets`' folders: what people train on, to train on."""
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

PART = 32  # pictures or clips that are drawn at a time, each part by seeds of its own
# Plan(count, generator, rng) -> (captions, one or several each; draw); draw() -> {column: pictures (count, 3, H, W) or clips
# (count, 3, F, H, W), in [-1, 1]}
Plan = Callable[[int, torch.Generator, random.Random], tuple[list[str] | list[list[str]], Callable[[], dict[str, torch.Tensor]]]]
SHOWN, CONDITION = "file_name", "conditioning_image"  # columns


def write(folder: Path, count: int, plan: Plan, suffix: str = ".png", seed: int = 0) -> None:
    """Draw into column/00000.png and so on, and metadata.jsonl. What is there already is not drawn again.

    suffix: .mp4 for clips. seed: another one, other drawings."""
    lines = []
    for start in tqdm(range(0, count, PART), desc="drawing", disable=count < 1000, mininterval=5):
        captions, draw = plan(min(PART, count - start), torch.Generator().manual_seed(seed + start), random.Random(seed + start))
        names = [f"{i:05}{suffix}" for i in range(start, start + len(captions))]
        if not all((folder / SHOWN / name).exists() for name in names):
            drawn = draw()
            for column in sorted(drawn, key=[CONDITION, SHOWN].index):  # what is shown comes last, and stands for all
                (folder / column).mkdir(parents=True, exist_ok=True)
                for name, one in zip(names, drawn[column], strict=True):
                    part = folder / column / f"part{suffix}"
                    save(one, part)
                    os.replace(part, folder / column / name)
        columns = [column for column in (SHOWN, CONDITION) if (folder / column).exists()]
        lines += [{column: f"{column}/{name}" for column in columns} | {"text": said} for name, said in zip(names, captions)]
    part = folder / "metadata.part"
    part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(part, folder / "metadata.jsonl")


def save(drawn: torch.Tensor, path: Path) -> None:
    """A picture (3, H, W) as PNG, a clip (3, F, H, W), which lasts a second, as H.264 of RGB without loss."""
    if drawn.dim() == 3:
        Image.fromarray(to_bytes(drawn)).save(path, compress_level=1)
        return
    import av  # measuring does without

    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264rgb", rate=drawn.shape[1] - 1)
        stream.height, stream.width = drawn.shape[-2:]
        stream.pix_fmt, stream.options = "rgb24", {"qp": "0", "preset": "ultrafast"}
        for frame in drawn.unbind(1):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(to_bytes(frame), format="rgb24")))
        out.mux(stream.encode())
