"""Rules between settings: what a run needs, what is not for it, and sizes that no model of the family has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from .config import Config, fields, get, only_of

FAMILIES = {"sana": "Sana", "sana_video": "SANA-Video", "cogvideox": "CogVideoX"}


def only_for(config: Config, given: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """(key, text) of every setting that was given, and is for other runs. given: whether a key has another source than its
    default. What is off by default, and was switched off, promises nothing."""
    for key, field in fields().items():
        off = field.default in (None, "none") or field.default is False
        if given(key) and not (off and get(config, key) == field.default) and (other := _other_runs(config, key)):
            of, values = other
            yield key, f"is for {of} {' or '.join(values)} alone, and {of} is {get(config, of)}. Take it out"


def applies(config: Config, key: str) -> bool:
    """Whether a setting is for such a run at all."""
    return _other_runs(config, key) is None


def _other_runs(config: Config, key: str) -> tuple[str, tuple[str, ...]] | None:
    """The condition for a setting that does not hold in this run."""
    return next((only for only in only_of(fields()[key]) if str(get(config, only[0])) not in only[1]), None)


def agree(config: Config) -> Iterator[tuple[str, str]]:
    """(key, text) of every setting that does not fit with the others, whether paths were given or not."""
    model, train = config.model, config.train
    if model.family != "sana" and train.kind in ("controlnet", "sprint"):
        yield "train.kind", f"{train.kind} is Sana's, and model.family is {model.family}; allowed: lora or full"
    if model.distilled and model.family == "sana" and train.kind != "sprint":
        yield "train.kind", (f"{train.kind} on {model.title or 'a distilled model'} would undo what makes it fast. Train on "
                             "sana_1_5_1600m_1024px or sana_sprint_1600m_teacher, or take kind sprint")
    if train.betas and len(train.betas) != (wanted := 3 if train.optimizer == "came" else 2):
        yield "train.betas", f"found {len(train.betas)} numbers; train.optimizer {train.optimizer} has {wanted}"
    if train.warmup >= train.steps and train.schedule != "constant":
        yield "train.warmup", (f"found {train.warmup}, and train.steps is {train.steps}: the {train.schedule} schedule has no "
                               "step left")
    if config.parallel.fsdp and config.parallel.deepspeed:
        yield "parallel.deepspeed", "parallel.fsdp is true, too: take one of them"
    elif config.parallel.fsdp or config.parallel.deepspeed:
        yield from shared(config)
    if config.output.save_every is None and config.output.save_minutes is None:
        yield "output.save_every", "null, and output.save_minutes too: a run would never be saved; give one of them"
    if model.family == "sana_video" and model.latents is None:
        yield "model.latents", "nothing given; a model.variant has it. Allowed: wan, ltx2 or cogvideox"
    else:
        yield from _sizes(config)


def shared(config: Config) -> Iterator[tuple[str, str]]:
    """(key, text) of what is not known to be right where processes share weights or the optimiser's state."""
    for key, wrong, instead in (("train.optimizer", config.train.optimizer != "adamw", "adamw"),
                                ("train.kind", config.train.kind == "sprint", "lora, full or controlnet"),
                                ("lora.dora", config.lora.dora, "false"),
                                ("model.dtype", config.model.dtype == "fp16", "bf16 or fp32")):
        if wrong:
            yield key, (f"found {str(get(config, key)).lower()}; where processes share weights or the optimiser's state "
                        f"(FSDP2, DeepSpeed), allowed: {instead}")


def _sizes(config: Config) -> Iterator[tuple[str, str]]:
    model, data = config.model, config.data
    step = model.latent_size.step

    def side(key, value):
        if value < step or value % step:
            yield key, f"found {value}; sides of {_name(config)} are multiples of {step} px: {_near(value, step)}"

    def count(key, value):
        frame_step, most = model.clip_step, model.max_frames
        if frame_step and (value < 1 or value % frame_step != 1):
            yield key, f"found {value}; {_name(config)} has {frame_step} n + 1 frames: {_near(value - 1, frame_step, 1)}"
        elif most and value > most:
            yield key, f"found {value}; {_name(config)} has {most} frames at most"

    if isinstance(data.resolution, int):
        if model.clips:
            yield "data.resolution", f"found {data.resolution}; allowed for {FAMILIES[model.family]}: [height, width]"
        else:
            yield from side("data.resolution", data.resolution)
    elif data.resolution is not None:
        if len(data.resolution) != 2:
            yield "data.resolution", f"found a list of {len(data.resolution)}; allowed: a side in px, or [height, width]"
        else:
            for index, value in enumerate(data.resolution):
                yield from side(f"data.resolution.{index}", value)
    for index, value in enumerate(data.frames or () if model.clips else ()):
        yield from count(f"data.frames.{index}", value)
    for at, bucket in enumerate(data.buckets or ()):
        key = f"data.buckets.{at}"
        if not model.clips and len(bucket) == 3 and bucket[0] != 1:
            yield key, f"found {bucket}; Sana draws pictures; allowed: [height, width]"
        elif len(bucket) not in (2, 3):
            yield key, f"found a list of {len(bucket)}; allowed: [height, width] or [frames, height, width]"
        elif model.clips and len(bucket) == 2 and not data.frames:
            yield key, f"found {bucket}, and data.frames is null; allowed: [frames, height, width]"
        else:
            for offset, value in enumerate(bucket):
                if len(bucket) == 3 and offset == 0:
                    yield from count(f"{key}.0", value) if model.clips else ()
                else:
                    yield from side(f"{key}.{offset}", value)


def _name(config: Config) -> str:
    return config.model.title or FAMILIES[config.model.family]


def _near(value: int, step: int, plus: int = 0) -> str:
    """The counts around a wrong one: "48 or 64"."""
    low = max(value // step, 0) * step + plus
    return f"{low} or {low + step}" if low else f"{low + step}"


# What a person must give, and what it is. Not asked for when settings are only shown.
def needs(config: Config) -> Iterator[tuple[str, str]]:
    """(key, text) of every setting that is missing for a run, and of paths where nothing lies."""
    model, data, train = config.model, config.data, config.train
    published = next((f", published as {name}" for name in (
        model.published.diffusers, model.published.native, model.published.sat) if name), "")
    if model.conditioning not in ("none", "image"):
        yield "model.conditioning", f"found {model.conditioning}: such models are not trained here; allowed: none or image"
    if model.distilled and model.family == "sana_video":
        yield "model.distilled", (f"true: {_name(config)} draws in a few steps, which training here would undo. Train on "
                                  "sana_video_2b_480p, sana_video_2b_720p or sana_video_2_0_5b_720p")
    if model.transformer is None:
        yield "model.transformer", f"nothing given. Give the path of {_name(config)}'s network{published}: model.transformer=PATH"
    if data.path is None:
        yield "data.path", "nothing given. Give the folder of your pictures or clips with captions: data.path=FOLDER"
    if train.kind == "sprint" and train.teacher is None:
        yield "train.teacher", "nothing given, and train.kind is sprint. Give the path of the teacher's network: train.teacher=PATH"
    if data.buckets is None:
        if data.resolution is None:
            yield "data.resolution", "nothing given, nor data.buckets. Give the size to train on; a model.variant has one"
        if data.frames is None and model.clips:
            yield "data.frames", "nothing given, nor data.buckets. Give the frames of a clip; a model.variant has them"
    if config.validation.prompts and config.validation.every:
        for name in ("steps", "guidance"):
            if getattr(config.validation, name) is None and getattr(config.sampling, name) is None:
                yield f"validation.{name}", "nothing given, nor in `sampling`; a model.variant has it"
    if model.transformer is not None and Path(model.transformer).is_file():
        for name in ("autoencoder", "text_encoder"):
            if getattr(model, name) is None:
                yield f"model.{name}", f"nothing given, and model.transformer is a file. Give its path: model.{name}=PATH"
    for key in ("model.transformer", "model.autoencoder", "model.text_encoder", "train.teacher", "train.controlnet", "parallel.deepspeed"):
        path = get(config, key)
        if path is not None and not Path(path).exists():
            yield key, f"found {path!r}, where nothing lies (from {Path.cwd()}). Give a file or folder that is there"
    prompts = config.validation.prompts
    if isinstance(prompts, str) and not Path(prompts).is_file():
        yield "validation.prompts", f"found {prompts!r}, which is no file. Give a text file, one prompt a line, or a list"
