"""Latents and texts of a run's samples, made once and kept, and batches of them.

Autoencoder and text encoder are in memory while the cache is filled, and gone when `prepare` returns.
"""

from __future__ import annotations

import gc
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..cogvideo_core.autoencoder import Tiles as ClipTiles
from ..sana_core.text import MAX_TOKENS, with_motion_score
from ..sana_core.tiles import Tiles
from . import trajectories
from .data import cache, media
from .data.batches import Batches, pick_caption
from .data.manifest import captions_of
from .models import Models
from .samples import Sample, gather, number

_SCORED = re.compile(r"motion score: ?\d+\.?\s*$")  # a caption with a score of its own
NOISED = 4  # noised first pictures that are kept of a clip, one of which is drawn each time


@dataclass
class Data:
    """train, held_out: samples. null: key of the empty prompt. prompts: {validation prompt: key}. left_out: {reason: how many
    rows}. scale: a latent of the network is the autoencoder's times this."""

    cache: cache.Cache
    train: list[Sample]
    held_out: list[Sample]
    null: str
    prompts: dict[str, str]
    left_out: Counter
    config: object
    scale: float

    def batches(self) -> Batches:
        return Batches([s.placed.bucket for s in self.train], [s.row.repeats for s in self.train], self.config.data.batch_size,
                       self.config.train.seed)


def prepare(config, models: Models, folder: Path, device: torch.device, log=print, rank: int = 0, ranks: int = 1,
            wait=lambda: None) -> Data:
    """Read, place, and fill the cache. folder: of the run. rank, ranks: this process's share of the work; wait: for the others."""
    train, held_out, left_out = gather(config, log)
    kept = cache.Cache(config.data.cache or folder / "cache")
    prints = cache.Fingerprints(kept.folder / f"files.{rank}.json")
    keys = _Keys(config, models, prints)
    train, held_out = ([keys.filled(s) for s in samples] for samples in (train, held_out))
    prints.save()
    prompts = {prompt: keys.text(prompt) for prompt in read_prompts(config.validation.prompts)}
    result = Data(kept, train, held_out, keys.text(""), prompts, left_out, config, models.scale)
    _encode_texts(result, keys, models, device, log, rank, ranks)
    if keys.teacher:
        wait()  # for all texts
        trajectories.draw(result, device, log, rank, ranks)
    else:
        _encode_latents(result, keys, models, device, log, rank, ranks)
    wait()
    return result


class _Keys:
    """Names of what is made of a run's rows by its models."""

    def __init__(self, config, models, prints):
        self.config, self.prints, self.models = config, prints, models
        self.autoencoder, self.encoder = (self._sum(models.files(part)) for part in ("autoencoder", "text_encoder"))
        draws = config.train.kind == "sprint" and config.objective.distillation == "trajectories"
        self.teacher = self._sum(Models(config.model, config.train.teacher).files("transformer")) if draws else []

    def _sum(self, files):
        return [self.prints.sha256(file.parent, file.name) for file in files]

    def said(self, caption: str) -> str:
        """What the text encoder reads of a caption, behind the instruction."""
        score = self.config.data.motion_score
        return caption if not caption or not score or _SCORED.search(caption) else with_motion_score(caption, score)

    def instructed(self, caption: str) -> bool:
        """Whether a caption stands behind the instruction: where a share of them does, the same ones each time."""
        share = 0.0 if self.config.model.family == "cogvideox" else float(self.config.data.instruction)
        return caption != "" and number("instruction", caption) < share * 2**63

    def text(self, caption: str) -> str:
        parts = {"kind": "text", "text": self.said(caption), "encoder": self.encoder}
        has_one = self.config.model.family != "cogvideox"
        return cache.key(parts | ({"instruction": self.instructed(caption)} if has_one else {}))

    def latent(self, sample: Sample, **more) -> str:
        data, row = self.config.data, sample.row
        parts = cache.transform(sample.placed, data.fps, data.window, sample.clip, data.pad_last)
        return cache.key({"kind": "latent", "file": self.prints.sha256(sample.folder, row.file), "transform": parts,
                          "autoencoder": self.autoencoder, **more})

    def picture(self, sample: Sample, **more) -> str:
        """Of row.image, or the first frame."""
        if not sample.row.image:
            return self.latent(sample, part="first", **more)
        return cache.key({"kind": "picture", "file": self.prints.sha256(sample.folder, sample.row.image),
                          "bucket": list(sample.placed.bucket), "autoencoder": self.autoencoder, **more})

    def filled(self, sample: Sample) -> Sample:
        texts = {caption: self.text(caption) for caption in captions_of(sample.row) or [""]}
        if self.teacher:  # which draws one picture of a row, and so of one caption
            caption, text = next(iter(texts.items()))
            return replace(sample, latent=trajectories.key(sample, text, self.config, self.teacher), texts={caption: text})
        image: tuple[str, ...] = ()
        if self.config.model.conditioning == "image":
            noise = list(self.config.objective.image_noise)
            image = tuple(self.picture(sample, noise=noise, number=i) for i in range(NOISED))
        control = self.picture(sample) if self.config.train.kind == "controlnet" else ""
        return replace(sample, latent=self.latent(sample), texts=texts, image=image, control=control)


def _encode_texts(data: Data, keys: _Keys, models, device, log, rank, ranks) -> None:
    wanted = {key: caption for s in data.train + data.held_out for caption, key in s.texts.items()} | {data.null: ""}
    wanted |= {key: prompt for prompt, key in data.prompts.items() if prompt}
    missing = [(key, caption) for key, caption in sorted(wanted.items()) if key not in data.cache][rank::ranks]
    if not missing:
        return
    encoder = models.text_encoder()
    encoder.model.to(device)
    for key, caption in tqdm(missing, desc="captions", mininterval=1, disable=len(missing) < 50):
        if key == data.null:
            states, mask = encoder.encode_empty()
        else:
            states, mask = encoder.encode(keys.said(caption), **({"instruction": True} if keys.instructed(caption) else {}))
        data.cache.put(key, {"states": states, "mask": mask}, {"kind": "text", "text": keys.said(caption)})
    del encoder
    _free(device)
    log(f"encoded {len(missing)} captions")


def _encode_latents(data: Data, keys: _Keys, models, device, log, rank, ranks) -> None:
    jobs = {s.latent: (s, None, 0) for s in data.train + data.held_out}
    for s in data.train + data.held_out:
        jobs |= {key: (s, "image", i) for i, key in enumerate(s.image)} | ({s.control: (s, "control", 0)} if s.control else {})
    missing = [(key, *job) for key, job in sorted(jobs.items(), key=lambda job: job[0]) if key not in data.cache][rank::ranks]
    if not missing:
        return
    autoencoder, noise = models.autoencoder().to(device), data.config.objective.image_noise
    loader = DataLoader(_Pixels(missing, data.config.data), batch_size=None, num_workers=data.config.data.workers)
    bar = tqdm(zip(missing, loader), total=len(missing), desc="latents", mininterval=1, disable=len(missing) < 20)
    for (key, sample, part, i), pixels in bar:
        if part == "image":
            generator = torch.Generator().manual_seed(number("image", key))
            size = math.exp(noise[0] + noise[1] * torch.randn((), generator=generator).item())
            pixels = pixels + size * torch.randn(pixels.shape, generator=generator)
        tensors = encode(autoencoder, pixels.to(device), data.config.model, data.scale)
        data.cache.put(key, tensors, {"kind": part or "latent", "file": sample.row.file, "bucket": list(sample.placed.bucket)})
    del autoencoder
    _free(device)
    log(f"encoded {len(missing)} latents")


class _Pixels(Dataset):
    def __init__(self, jobs, data):
        self.jobs, self.data = jobs, data

    def __len__(self):
        return len(self.jobs)

    def __getitem__(self, i):
        _, sample, part, _ = self.jobs[i]
        if part and sample.row.image:
            return media.load_picture(sample.row.image, sample.folder, sample.placed.bucket)
        pixels = media.load(sample.row, sample.placed, sample.folder, fps=self.data.fps, window=self.data.window, clip=sample.clip,
                            pad_last=self.data.pad_last)
        return pixels[:, :1] if part else pixels


@torch.no_grad()
def encode(autoencoder, pixels: torch.Tensor, model, scale: float) -> dict[str, torch.Tensor]:
    """Pixels (3, F, H, W) in [-1, 1] -> Sana, SANA-Video: latent (C, h, w), (C, f, h, w), scaled; CogVideoX: mean and logvar
    (C, f, h, w), not scaled. model: the config's section.

    In pieces where the whole does not fit into the memory.
    """
    def run(tiles):
        if model.family == "cogvideox":
            mean, logvar = autoencoder.moments(pixels[None], tiles)
            return {"mean": mean[0].float().cpu(), "logvar": logvar[0].float().cpu()}
        shown = pixels[None] if model.clips else pixels[None, :, 0]
        return {"latent": autoencoder.encode(shown, tiles)[0].float().cpu() * scale}

    try:
        return run(None)
    except torch.OutOfMemoryError:
        _free(pixels.device)
        return run(ClipTiles() if model.clips else Tiles())


def _free(device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# --- batches ---


class BatchDataset(Dataset):
    """Batch number n -> {"names", "latents" or "mean" and "logvar", "states", "mask", "null_states", "null_mask", ...}; of a
    teacher's latents "noise" and "guidance" as well.

    A function of n alone: so it does not matter which process makes it. params: of the network.
    """

    def __init__(self, data: Data, params, batches: Batches):
        self.data, self.params, self.plan = data, params, batches

    def __getitem__(self, n: int) -> dict:
        samples = [self.data.train[i] for i in self.plan.batch(n)]
        seed = number("rows", self.data.config.train.seed, n)
        return collate(self.data, self.params, samples, torch.Generator().manual_seed(seed))


def collate(data: Data, params, samples: Sequence[Sample], generator: torch.Generator) -> dict:
    """Samples of one bucket as a batch. generator: of what is drawn of several captions and pictures."""
    captions = [caption if (caption := pick_caption(s.row, generator)) in s.texts else next(iter(s.texts)) for s in samples]
    texts = [_entry(data, s.texts[caption], s) for s, caption in zip(samples, captions)]
    lengths = [len(t["mask"]) for t in texts]
    if data.config.train.compile != "none" and data.config.model.family != "cogvideox":  # T5's are always whole
        lengths.append(MAX_TOKENS)
    length = max(lengths)
    null = _entry(data, data.null, samples[0])
    batch = {"names": [s.row.file for s in samples], "captions": captions,
             "states": torch.stack([F.pad(t["states"], (0, 0, 0, length - len(t["mask"]))) for t in texts]),
             "mask": torch.stack([F.pad(t["mask"], (0, length - len(t["mask"]))) for t in texts]),
             "null_states": null["states"][None], "null_mask": null["mask"][None]}
    latents = [_entry(data, s.latent, s) for s in samples]
    if "latent" in latents[0]:
        batch["latents"] = torch.stack([z["latent"] for z in latents])
        batch |= {name: torch.stack([z[name] for z in latents]) for name in ("noise", "guidance") if name in latents[0]}
    else:  # what a latent is drawn of, each time anew
        batch |= {name: torch.stack([z[name] for z in latents]) for name in ("mean", "logvar")}
    if samples[0].image:
        drawn = torch.randint(len(samples[0].image), (len(samples),), generator=generator).tolist()
        batch["image"] = torch.stack([_entry(data, s.image[i], s)["mean"] for s, i in zip(samples, drawn)]) * params.condition_scale
    if samples[0].control:
        batch["control"] = torch.stack([_entry(data, s.control, s)["latent"] for s in samples])
    return batch


def _entry(data: Data, key: str, sample: Sample) -> dict:
    if (found := data.cache.get(key)) is None:
        raise FileNotFoundError(f"{data.cache.folder}: the cache's entry of {sample.row.file} was deleted while training. Start "
                                "the run again: it is made anew, and training goes on from the last checkpoint.")
    return found


def stale(data: Data) -> list[Path]:
    """Entries of the cache that this run does not use."""
    wanted = {data.null, *data.prompts.values()}
    for s in data.train + data.held_out:
        wanted |= {s.latent, *s.texts.values(), *s.image, *([s.control] if s.control else [])}
    return data.cache.stale(wanted)


def read_prompts(prompts) -> list[str]:
    """validation.prompts: a list, or the lines of a file."""
    if isinstance(prompts, str):
        return [line.strip() for line in Path(prompts).read_text(encoding="utf-8").splitlines() if line.strip()]
    return list(prompts)
