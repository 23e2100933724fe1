"""From rows to samples: what a data set has for these settings, in which bucket each row goes, what is held out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ..sana_core.aspect_ratios import SHAPES
from .data import buckets, layouts, media, timing
from .data.buckets import Bucket, Placed
from .data.manifest import Row, captions_of

SANA_TABLES = (512, 1024, 2048, 2880, 4096)


@dataclass(frozen=True)
class Sample:
    """A row in its bucket. clip: which window of it. latent, texts, image, control: keys in the cache, texts by caption."""

    row: Row
    folder: Path
    placed: Placed
    clip: int = 0
    latent: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    image: tuple[str, ...] = ()
    control: str = ""


def number(*parts) -> int:
    """A seed made of all parts: what is drawn for batch n depends on n alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def sizes(config) -> list[Bucket]:
    """The buckets of a run. Raises ValueError for sizes that the model cannot take."""
    data, model = config.data, config.model
    if data.buckets:
        found = [Bucket(1, *size) if len(size) == 2 and not data.frames else Bucket(*((frames, *size) if len(size) == 2 else size))
                 for size in data.buckets for frames in (data.frames if len(size) == 2 and data.frames else [None])]
    elif model.clips:
        found = buckets.clips(data.frames, [tuple(data.resolution)])
    elif isinstance(data.resolution, int):
        found = buckets.sana(data.resolution) if data.resolution in SANA_TABLES else _scaled_table(data.resolution)
    else:
        found = [Bucket(1, *data.resolution)]
    frames = None
    if step := model.clip_step:
        frames = range(step + 1, (model.max_frames or 10**6) + 1, step)
    buckets.check(found, model.latent_size.step, frames)
    return found


def _scaled_table(side: int) -> list[Bucket]:
    """Sana's shapes at another size, to multiples of 32 px."""
    scale = side / 512
    return sorted({Bucket(1, *(max(32, round(units * scale) * 32) for units in shape)) for shape in SHAPES})


# --- rows ---


def read_rows(source, workers: int, log: Callable[[str], None]) -> list[Row]:
    """The rows of a data set with sizes and times, without those that are to be left out."""
    rows, folder = layouts.read_source(source, log), layouts.folder_of(source)
    unknown = [i for i, row in enumerate(rows) if row.status != "error" and min(row.width, row.height) < 1]
    if unknown:
        with ThreadPoolExecutor(max(1, workers)) as threads:
            probed = threads.map(lambda i: media.probe_row(rows[i], folder), unknown)
            for i, row in zip(unknown, tqdm(probed, total=len(unknown), desc="reading files", disable=len(unknown) < 50)):
                rows[i] = row
    return rows


def place_rows(rows: Sequence[Row], folder: Path, config, left_out: Counter) -> list[Sample]:
    """The samples of rows; those without a bucket are counted."""
    data, found, allowed = config.data, [], sizes(config)
    for row in rows:
        if row.status == "error":
            left_out.update(row.reasons or ["error"])
            continue
        try:
            placed = buckets.place(row, allowed, data.fps, data.pad_last)
        except buckets.Unplaced as error:
            left_out[error.reason] += 1
            continue
        count = 1
        if row.kind == "video":
            frames = timing.available(row.frames, row.duration, data.fps)
            count = max(1, len(timing.samples(frames, placed.bucket.frames, data.window, data.pad_last)))
        found += [Sample(row, folder, placed, clip) for clip in range(count)]
    return found


def split(samples: list[Sample], share: float) -> tuple[list[Sample], list[Sample]]:
    """(trained on, held out): the same rows are held out whatever their order is, and none of a row is on both sides."""
    files = sorted({s.row.file for s in samples}, key=lambda file: hashlib.sha256(file.encode(errors="replace")).digest())
    count = min(max(1, round(share * len(files))), len(files) - 1) if share else 0
    held_out = set(files[:count])
    return [s for s in samples if s.row.file not in held_out], [s for s in samples if s.row.file in held_out]


def gather(config, log=print) -> tuple[list[Sample], list[Sample], Counter]:
    """(trained on, held out, {reason: rows left out}), nothing encoded. Raises ValueError, FileNotFoundError where there is nothing
    to train on."""
    data, left_out, held_out = config.data, Counter(), []
    train = place_rows(read_rows(data.path, data.workers, log), layouts.folder_of(data.path), config, left_out)
    if isinstance(data.validation, str):
        rows = read_rows(data.validation, data.workers, log)
        held_out = place_rows(rows, layouts.folder_of(data.validation), config, left_out)
    elif data.validation:
        train, held_out = split(train, data.validation)
    if left_out:
        log("left out: " + ", ".join(f"{count} x {reason}" for reason, count in left_out.most_common()))
    if not train:
        raise ValueError(f"data.path {data.path}: there is nothing to train on: no row fits a bucket. Look at it with: "
                         "python run.py dataset FOLDER.")
    if config.train.kind == "controlnet" and (bare := [s.row.file for s in train + held_out if not s.row.image]):
        raise ValueError(f"data.path {data.path}: {len(bare)} rows have no condition picture, such as {bare[0]}. A ControlNet's "
                         "rows have an `image` each; see docs/dataset.md.")
    if silent := sum(not captions_of(s.row) for s in train):
        log(f"{silent} of {len(train)} samples have no caption, and are trained with the empty one")
    return train, held_out, left_out


def table(samples: Sequence[Sample]) -> list[tuple[Bucket, int]]:
    """(bucket, samples in it), the fullest first."""
    return Counter(s.placed.bucket for s in samples).most_common()


def summary(train: Sequence[Sample], held_out: Sequence[Sample]) -> str:
    """A line on what is trained on."""
    enlarged = sum(s.placed.enlarged > 1 for s in train)
    cropped = sum(s.placed.cropped for s in train) / len(train)
    held = f", {len(held_out)} held out" if held_out else ""
    return (f"{len(train)} samples in {len(table(train))} buckets{held}; {enlarged} enlarged, {cropped:.1%} of their area cut off")
