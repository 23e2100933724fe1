"""What a run leaves to look at: a picture of its curves, and report.md with it and the pictures that were drawn on the way."""

from __future__ import annotations

import math
import os
from pathlib import Path

from PIL import Image, ImageDraw

from . import checkpoints, samples

NAME = "report.md"
WIDTH, HEIGHT, EDGE = 900, 240, 44


def write(config, folder: Path, data, processes: int, seconds: float) -> Path:
    """report.md and curves.png of a run's folder. data: latents.Data. seconds: of this call."""
    history = checkpoints.History(folder / "history.jsonl", 10**12)
    panels = {"loss on held-out rows, at fixed noise levels": history.series("validation_loss"),
              "training loss (depends on the noise levels drawn; smoothed)": smooth(history.series("loss")),
              "norm of the gradient (smoothed)": smooth(history.series("norm"))}
    curves({title: points for title, points in panels.items() if len(points) > 1}, folder / "curves.png")
    train, done = config.train, history.series("loss")
    found = checkpoints.everyone(folder / "checkpoints")
    lines = [f"# {config.output.name}", "",
             f"{train.kind} on {config.model.title or config.model.family}, {done[-1][0] if done else 0} of {train.steps} steps; "
             f"{_time(history.series('seconds')[-1][1] if done else 0)} of training.", "",
             "| | |", "|---|---|",
             f"| rows a step | {config.data.batch_size * train.accumulation * processes} |",
             f"| optimiser | {train.optimizer}, learning rate {train.lr:g}, {train.schedule} |",
             f"| data | {samples.summary(data.train, data.held_out)} |"]
    lines += [f"| bucket {bucket} | {count} |" for bucket, count in samples.table(data.train)]
    if data.left_out:
        lines += [f"| left out | {', '.join(f'{count} x {reason}' for reason, count in data.left_out.most_common())} |"]
    if skipped := history.series("skipped"):
        lines += [f"| skipped | {len(skipped)} steps, whose gradients overflowed in fp16 |"]
    if best := checkpoints.best(found):
        lines += [f"| lowest held-out loss | {best.about['loss']:.4f}, step {best.step} ({best.path.name}) |"]
    lines += ["", "All settings, with the source of each: config.yaml. All numbers: history.jsonl.", ""]
    if (folder / "curves.png").exists():
        lines += ["![curves](curves.png)", ""]
    if measured := history.series("validation_loss"):
        levels = sorted({name for entry in history.lines for name in entry if name.startswith("validation_loss at ")})
        lines += ["| step | loss | " + " | ".join(name.removeprefix("validation_loss ") for name in levels) + " |",
                  "|" + "---|" * (2 + len(levels))]
        by_step = {entry["step"]: entry for entry in history.lines if "validation_loss" in entry}
        lines += [f"| {step} | {loss:.4f} | " + " | ".join(f"{by_step[step][name]:.4f}" for name in levels) + " |"
                  for step, loss in measured] + [""]
    for sheet in sorted((folder / "samples").glob("step-*.png")):
        lines += [f"## {sheet.stem.replace('-', ' ')}", "", f"![{sheet.stem}](samples/{sheet.name})", ""]
        lines += [f"- [{clip.name}](samples/{clip.name})" for clip in sorted(sheet.parent.glob(f"{sheet.stem}-*.mp4"))]
    path = folder / NAME
    part = path.with_suffix(".part")
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(part, path)
    return path


def smooth(points: list[tuple[int, float]], most: int = 200) -> list[tuple[int, float]]:
    """Means over windows, at most `most` of them."""
    window = max(1, math.ceil(len(points) / most))
    parts = [points[i : i + window] for i in range(0, len(points), window)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def curves(panels: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """A PNG with a panel for each series, steps across, values on a linear scale. Nothing is written without a series."""
    if not panels:
        return
    page = Image.new("RGB", (WIDTH, HEIGHT * len(panels)), "white")
    pen = ImageDraw.Draw(page)
    for row, (title, points) in enumerate(panels.items()):
        values = [value for _, value in points if math.isfinite(value)]
        low, high = min(values), max(values)
        high = high if high > low else low + max(1e-9, abs(low) * 1e-3)
        first, last = points[0][0], max(points[-1][0], points[0][0] + 1)
        left, right, top, bottom = EDGE + 26, WIDTH - EDGE, row * HEIGHT + EDGE, (row + 1) * HEIGHT - EDGE
        pen.rectangle((left, top, right, bottom), outline="lightgrey")
        line = [(left + (right - left) * (step - first) / (last - first), bottom - (bottom - top) * (value - low) / (high - low))
                for step, value in points if math.isfinite(value)]
        pen.line(line, fill=(30, 90, 200), width=2)
        pen.text((left, top - 18), f"{title}: last {values[-1]:.4g}", fill="black")
        pen.text((4, top - 5), f"{high:.3g}", fill="black")
        pen.text((4, bottom - 8), f"{low:.3g}", fill="black")
        pen.text((left, bottom + 4), f"step {first}", fill="black")
        pen.text((right - 60, bottom + 4), f"{last}", fill="black")
    page.save(path)


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.1f} minutes"
