"""What people look at while a model trains: pictures or clips of fixed prompts and seeds, and the loss on held-out rows at fixed
noise levels. The training loss says little, as it depends on the noise level that was drawn far more than on the weights."""

from __future__ import annotations

import gc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw

from . import sampling
from .latents import Data, collate
from .samples import Sample, number

MOST_ROWS = 64  # held-out rows that are measured, the same ones each time


def losses(loss, data: Data, params, levels: list[float], device) -> dict[str, float]:
    """{"loss": mean over rows and levels, "loss at 0.5": ...} on the held-out rows; the same rows, captions and noise each time.

    loss(batch, generator, level): as the recipe's Loss.
    """
    rows = sorted(data.held_out, key=lambda s: (number(s.row.file, s.clip), s.row.file))[:MOST_ROWS]
    totals = dict.fromkeys(levels, 0.0)
    with torch.no_grad():
        for i, sample in enumerate(rows):
            batch = collate(data, params, [sample], torch.Generator().manual_seed(number("held out", i)))
            batch = {name: t.to(device) if isinstance(t, torch.Tensor) else t for name, t in batch.items()}
            for level in levels:
                generator = torch.Generator().manual_seed(number("level", i, level))
                totals[level] += loss(batch, generator, level).sum().item()
    means = {level: total / len(rows) for level, total in totals.items()}
    return {"loss": sum(means.values()) / len(means)} | {f"loss at {level:g}": mean for level, mean in means.items()}


def draw(run: Callable, data: Data, params, decoder: Callable, device, log=print) -> dict[str, list[torch.Tensor]]:
    """{prompt: pictures (3, F, H, W) in [-1, 1], one a seed} by the network as it is. run(call) -> call(network)."""
    config = data.config
    wanted, steps, guidance = config.sampling, config.validation_steps, config.validation_guidance
    height, width = wanted.height or data.train[0].placed.bucket.height, wanted.width or data.train[0].placed.bucket.width
    frames = wanted.frames or data.train[0].placed.bucket.frames
    null = data.cache.get(data.null)
    latents: dict[str, list[torch.Tensor]] = {}
    for at, (prompt, key) in enumerate(data.prompts.items()):
        text = data.cache.get(key)
        for seed in config.validation.seeds:
            size = config.model.latent_size.of(frames, height, width)
            if config.model.family == "cogvideox":
                first = _first_frame(data, at, params) if params.conditioning == "image" else None
                size = size if first is None else (size[0], *first.shape[-2:])
                z = run(lambda network: sampling.cogvideox(
                    network, params, wanted, text["states"][None], null["states"][None], size, seed, steps, guidance, device,
                    first))
            else:
                pair = [(t["states"][None], t["mask"][None]) for t in (text, null)]
                control, first = _control(data, at), _given_frame(data, at)
                if (shown := first if control is None else control) is not None:
                    size = (*size[:-2], *shown.shape[-2:])
                z = run(lambda network: sampling.sana(
                    network, params, wanted, *pair, size, seed, steps, guidance, device, control, first))
            latents.setdefault(prompt, []).append(z)
    if not latents:
        return {}
    return decoder(latents)


def decode(models, scale: float, device) -> Callable:
    """A decoder for `draw`: the autoencoder is loaded for it, and gone afterwards."""
    def run(latents):
        autoencoder = models.autoencoder().to(device)
        with torch.no_grad():
            pictures = {prompt: [_pixels(autoencoder, z.to(device) / scale) for z in several]
                        for prompt, several in latents.items()}
        del autoencoder
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return pictures
    return run


def _pixels(autoencoder, z):
    """(3, F, H, W) on the CPU."""
    found = autoencoder.decode(z)[0].float().cpu().clamp(-1, 1)
    return found[:, None] if found.dim() == 3 else found


def _sample(data: Data, at: int) -> Sample:
    """The row whose picture goes with prompt number `at`."""
    rows = data.held_out or data.train
    return rows[at % len(rows)]


def _first_frame(data: Data, at: int, params) -> torch.Tensor:
    return data.cache.get(_sample(data, at).image[0])["mean"][None] * params.condition_scale


def _given_frame(data: Data, at: int) -> torch.Tensor | None:
    """What SANA-Video's clip begins with, where image to video alone is trained."""
    config = data.config
    if config.model.family != "sana_video" or config.objective.picture_share < 1:
        return None
    return data.cache.get(_sample(data, at).latent)["latent"][None, :, :1]


def _control(data: Data, at: int):
    sample = _sample(data, at)
    return data.cache.get(sample.control)["latent"][None] if sample.control else None


# --- files ---


def save(pictures: dict[str, list[torch.Tensor]], folder: Path, step: int, fps: float | None) -> Path:
    """Write step-000100.png, a sheet with a row a prompt and a column a seed, and of clips an mp4 each. Returns the sheet."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:06}.png"
    sheet([[frame(p) for p in several] for several in pictures.values()], list(pictures), path)
    for at, several in enumerate(pictures.values()):
        for number_, clip in enumerate(several):
            if clip.shape[1] > 1:
                write_mp4(clip, folder / f"step-{step:06}-{at}-{number_}.mp4", fps or 8.0)
    return path


def frame(picture: torch.Tensor) -> np.ndarray:
    """A picture, or the first, middle and last frame of a clip side by side: (H, W, 3) uint8."""
    frames = picture.shape[1]
    shown = [0] if frames == 1 else [0, frames // 2, frames - 1]
    return np.concatenate([to_bytes(picture[:, i]) for i in shown], axis=1)


def to_bytes(picture: torch.Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1] -> (H, W, 3) uint8."""
    return ((picture + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def sheet(rows: list[list[np.ndarray]], titles: list[str], path: Path, most: int = 512) -> None:
    """A PNG with a row of pictures under each title, each at most `most` px wide."""
    cells = [[Image.fromarray(p) for p in row] for row in rows]
    for row in cells:
        for cell in row:
            cell.thumbnail((most * max(1, cell.width // cell.height), most))
    line = 18
    width = max(sum(c.width + 4 for c in row) for row in cells)
    height = sum(max(c.height for c in row) + line + 4 for row in cells)
    page, y = Image.new("RGB", (width, height), "white"), 0
    pen = ImageDraw.Draw(page)
    for row, title in zip(cells, titles):
        pen.text((2, y + 2), title[: max(20, width // 6)], fill="black")
        x = 0
        for cell in row:
            page.paste(cell, (x, y + line))
            x += cell.width + 4
        y += max(c.height for c in row) + line + 4
    page.save(path)


def write_mp4(clip: torch.Tensor, path: Path, fps: float) -> None:
    """A clip (3, F, H, W) in [-1, 1] as H.264."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = clip.shape[3], clip.shape[2], "yuv420p"
        stream.options = {"crf": "16"}
        for i in range(clip.shape[1]):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(to_bytes(clip[:, i])), format="rgb24")))
        out.mux(stream.encode())
