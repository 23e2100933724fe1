"""What Sprint's teacher draws of a data set's captions, a latent a row, before training: entries of the cache in place of pictures'
latents. The teacher is in memory while they are drawn, and gone afterwards."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from tqdm import tqdm

from .data import cache
from .models import DTYPES, Models
from .objectives.trajectories import drawn_by
from .samples import Sample, number

GROUP = 32  # rows that the teacher draws at a time


def key(sample: Sample, text: str, config, teacher: list[str]) -> str:
    """The name of a row's entry. text: key of its caption's states. teacher: sums of its files."""
    return cache.key({"kind": "trajectory", "file": sample.row.file, "text": text, "bucket": list(sample.placed.bucket),
                      "teacher": teacher, "steps": config.objective.teacher_steps, "guidance": list(config.objective.guidance)})


def draw(data, device: torch.device, log, rank: int, ranks: int) -> None:
    """Fill what is missing: {"latent", scaled, and the "noise" that it was drawn from (C, h, w), "guidance" ()}.

    data: latents.Data, whose texts are there. rank, ranks: this process's share of the work.
    """
    config = data.config
    missing = {s.latent: s for s in data.train + data.held_out if s.latent not in data.cache}
    missing = sorted(missing.values(), key=lambda s: (s.placed.bucket, s.latent))[rank::ranks]
    if not missing:
        return
    models = Models(config.model, config.train.teacher)
    params, dtype, scales = models.params, DTYPES[config.model.dtype], config.objective.guidance
    teacher = models.transformer(dtype).to(device)
    null = _shown(data.cache.get(data.null))
    groups = [rows[i : i + GROUP] for rows in ([*same] for _, same in itertools.groupby(missing, lambda s: s.placed.bucket))
              for i in range(0, len(rows), GROUP)]
    bar = tqdm(total=len(missing), desc="teacher's latents", mininterval=1, disable=len(missing) < 20)
    for rows in groups:
        bucket = rows[0].placed.bucket
        size = config.model.latent_size.of(1, bucket.height, bucket.width)
        noise = torch.stack([_noise((params.in_channels, *size), number("teacher", s.latent)) for s in rows])
        guidance = torch.tensor([float(scales[number("guidance", s.latent) % len(scales)]) for s in rows])
        texts = [data.cache.get(next(iter(s.texts.values()))) for s in rows]
        length = max(len(null[0]), *(len(t["mask"]) for t in texts))
        text = _padded([(t["states"], t["mask"]) for t in texts], length)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            latents = drawn_by(teacher, params, noise.to(device), [t.to(device) for t in text],
                               [t.to(device) for t in _padded([null], length)], guidance.to(device), config.objective.teacher_steps,
                               config.sampling.shift or params.flow_shift)
        for s, z, start, scale in zip(rows, latents.float().cpu(), noise, guidance, strict=True):
            data.cache.put(s.latent, {"latent": z, "noise": start, "guidance": scale}, {"kind": "trajectory", "file": s.row.file})
        bar.update(len(rows))
    bar.close()
    log(f"the teacher drew {len(missing)} latents")


def _noise(size: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def _shown(text: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """The empty prompt's own tokens, as pipelines sample."""
    used = int(text["mask"].nonzero().max()) + 1
    return text["states"][:used], text["mask"][:used]


def _padded(texts: list[tuple[torch.Tensor, torch.Tensor]], length: int) -> list[torch.Tensor]:
    """States (B, length, D) and mask (B, length)."""
    return [torch.stack([F.pad(states, (0, 0, 0, length - len(states))) for states, _ in texts]),
            torch.stack([F.pad(mask, (0, length - len(mask))) for _, mask in texts])]
