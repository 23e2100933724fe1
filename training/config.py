"""The settings of a training run: names, types, bounds and what each one means. config_files.py reads them from YAML.

The descriptions are also the editor's (configs/schema.json) and the page's (docs/training_configuration.md); `only` says for
which runs a setting is, and config_rules.py refuses it elsewhere.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from .latent_sizes import SIZES, LatentSize


def _no_bool(value):
    """Python's True is the number 1; a person who wrote true meant something else."""
    if isinstance(value, bool):
        raise ValueError
    return value


def _as_list(value):
    return value if isinstance(value, list) or value is None else [value]


def _as_number(value):
    """The text 0.1 of an environment variable is a share and no path."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, Field(allow_inf_nan=False), BeforeValidator(_no_bool)]
Side = Annotated[int, Field(ge=16, le=8192), BeforeValidator(_no_bool)]
Wholes = Annotated[Whole | Annotated[list[Whole], Field(min_length=1)], AfterValidator(_as_list)]
Path = Annotated[str, AfterValidator(os.path.expanduser)]  # shells leave the ~ of key=~/x alone
Share = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_no_bool)]
Part = Annotated[float, Field(ge=0, le=1), BeforeValidator(_no_bool)]  # like Share, or all


def setting(default, description: str, only: str | None = None, **bounds) -> Any:
    """A field. only: "section.key=value|value", the runs that it is for; several conditions with spaces between."""
    return Field(default, description=description, json_schema_extra={"only": only} if only else None, **bounds)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


SANAS, CLIPS = "model.family=sana|sana_video", "model.family=sana_video|cogvideox"


class Published(Section):
    diffusers: str | None = setting(None, "repository on Hugging Face, diffusers layout")
    native: str | None = setting(None, "repository or file of the authors' own layout: NVlabs' .pth", SANAS)
    sat: str | None = setting(None, "repository or file of the authors' own layout: SAT's .pt", "model.family=cogvideox")


class Model(Section):
    variant: str | None = setting(None, "name of a file in configs/models: a released model. Its settings lie below all others")
    family: Literal["sana", "sana_video", "cogvideox"] | None = setting(None, "the architecture; the variant sets it")
    title: str | None = setting(None, "what the pack calls such a file when it reads one")
    published: Published = setting(Published(), "where the files are published, for messages and file headers")
    transformer: Path | None = setting(
        None, "path of the network: a file or folder of any layout that the pack reads. Training starts from it")
    autoencoder: Path | None = setting(
        None, "path of the autoencoder, file or folder. null: vae/ of the diffusers repository that `transformer` is or lies in")
    text_encoder: Path | None = setting(
        None, "path of the text encoder, file or folder. null: text_encoder/ of the diffusers repository that `transformer` is "
              "or lies in")
    dtype: Literal["bf16", "fp16", "fp32"] = setting(
        "bf16", "number type of frozen weights and of the arithmetic; what is trained is kept in fp32")
    quantize: Literal["none", "int8", "fp8"] = setting(
        "none", "frozen weights in 8 bits: half the memory, a little slower", "train.kind=lora|controlnet")
    distilled: bool = setting(
        False, "the model draws in a few steps (Sprint, LongSANA, 2.0 4-step): flow matching would undo that. Sprint is trained by "
               "kind sprint, the others are not trained here", SANAS)
    latents: Literal["wan", "ltx2", "cogvideox"] | None = setting(
        None, "whose autoencoder the network was trained with: Wan 2.1's, LTX-2's, or the embedded CogVideoX one; the variant sets it",
        "model.family=sana_video")
    conditioning: Literal["none", "image", "repeated_image", "inpaint", "control", "void"] = setting(
        "none", "what the network is given besides text: image is the first frame. Of none and image it is trained here",
        "model.family=cogvideox")
    frame_step: Literal[4, 8, 16] | None = setting(
        None, "clips have a multiple of this and one more frames: 8 for the 1.0 models, 16 for 1.5", "model.family=cogvideox")
    max_frames: Whole | None = setting(None, "longest clip, frames", "model.family=cogvideox", ge=1)

    @property
    def clips(self) -> bool:
        """Whether it draws clips, and not pictures."""
        return self.family != "sana"

    @property
    def latent_size(self) -> LatentSize:
        return SIZES[{"sana": "dcae", "sana_video": self.latents, "cogvideox": "cogvideox"}[self.family]]

    @property
    def clip_step(self) -> int | None:
        """Clips have a multiple of this and one more frames. None: any number."""
        return self.latent_size.clip_step if self.family == "sana_video" else self.frame_step


class Sampling(Section):
    """How a finished model is sampled. Validation does so unless it says otherwise."""

    width: Side | None = setting(None, "px")
    height: Side | None = setting(None, "px")
    frames: Whole | None = setting(None, "frames of a clip", CLIPS, ge=1)
    fps: Number | None = setting(None, "frames a second", CLIPS, gt=0)
    steps: Whole | None = setting(None, "sampling steps", ge=1, le=1000)
    guidance: Number | None = setting(None, "CFG scale; of Sprint the guidance that is an input", ge=0)
    shift: Number | None = setting(
        None, "Sana, SANA-Video: timestep shift of the flow; CogVideoX: shift of the signal-to-noise ratio", gt=0)
    sampler: Literal["euler", "flow_dpm_solver", "scm", "longsana", "lcm", "ddim", "dpm"] | None = setting(
        None, "Sana, SANA-Video: euler or flow_dpm_solver; scm for Sprint, longsana for LongSANA, lcm for 2.0 4-step; CogVideoX: "
              "ddim or dpm")
    dynamic_guidance: bool = setting(
        False, "guidance that moves with the step, the authors' advice with dpm", "model.family=cogvideox")


class Data(Section):
    path: Path | None = setting(None, "folder of any known layout, manifest.jsonl, tar, or id of a `datasets` set")
    resolution: Side | list[Side] | None = setting(
        None, "a side in px: all shapes of about that area (Sana); or one size [height, width] in px")
    buckets: list[list[Whole]] | None = setting(
        None, "the sizes trained on, instead of `resolution` and `frames`: [height, width] or [frames, height, width], px")
    frames: Wholes | None = setting(
        None, "frames of the clips; of several counts each clip gets the longest that fits", CLIPS)
    fps: Number | None = setting(
        None, "frames a second that clips are resampled to, by their time stamps. null: the clip's own", CLIPS, gt=0)
    window: Literal["head", "uniform", "slide"] = setting(
        "head", "which part of a long clip: its start, frames spread over all of it, or windows side by side, a sample each", CLIPS)
    pad_last: bool = setting(
        False, "repeat the last frame of clips that are too short, instead of leaving them out", CLIPS)
    caption_dropout: Share = setting(0.1, "share of rows that are trained without their caption; guidance needs some")
    instruction: bool | Part = setting(
        True, "Sana's instruction to the text encoder before every caption, as the models were trained; or before this share of the "
              "captions", SANAS)
    motion_score: Whole | None = setting(
        None, "how much moves, said behind every caption and prompt that does not say so itself: 30 as a rule, 20 for 2.0. null: "
              "nothing is said", "model.family=sana_video", ge=1, le=100)
    validation: Annotated[Share | Path | None, BeforeValidator(_as_number)] = setting(
        None, "held-out rows: a share of the data, or the path of other data. null: none, and no validation loss")
    batch_size: Whole = setting(1, "rows of a batch, a process", ge=1)
    workers: Whole = setting(2, "processes that decode; the result does not depend on it", ge=0, le=256)
    cache: Path | None = setting(None, "folder of latents and texts. null: cache/ in `output.folder`")


class Train(Section):
    kind: Literal["lora", "full", "controlnet", "sprint"] = setting(
        "lora", "lora: low-rank adapters; full: all weights; controlnet: a ControlNet for a frozen base; sprint: distil a "
                "teacher to a few steps")
    steps: Whole = setting(1000, "optimiser steps", ge=1)
    lr: Number = setting(1e-4, "learning rate at its highest; 1 for prodigy, which finds its own", gt=0, le=10)
    optimizer: Literal["adamw", "adamw8bit", "came", "prodigy", "muon"] = setting(
        "adamw", "adamw8bit needs bitsandbytes, prodigy needs prodigyopt")
    betas: list[Share] | None = setting(
        None, "averaging of gradients: two numbers, three for came. null: the optimiser's own", min_length=2, max_length=3)
    weight_decay: Number = setting(0.0, "decay of weights, not of vectors", ge=0, le=1)
    warmup: Whole = setting(0, "steps in which the learning rate rises to `lr`", ge=0)
    schedule: Literal["constant", "cosine", "linear"] = setting(
        "constant", "the learning rate after the warm-up; cosine and linear end at 0")
    accumulation: Whole = setting(1, "batches a step and process", ge=1)
    clip: Number | None = setting(1.0, "highest norm of the gradient. null: any", gt=0)
    ema: Share | None = setting(None, "average of the trained weights, decay a step; the average is what is saved. null: none")
    seed: Whole = setting(0, "of noise, order, dropout and first weights", ge=0, le=2**32 - 1)
    gradient_checkpointing: bool = setting(True, "compute blocks twice and keep less: far less memory, a third more time")
    compile: Literal["none", "inductor", "aot_eager", "eager"] = setting(
        "none", "compile each block by torch.compile, with this backend: inductor is the quick one, after minutes of compiling; "
                "the others are for finding faults")
    teacher: Path | None = setting(None, "path of the teacher", "train.kind=sprint")
    controlnet: Path | None = setting(
        None, "path of a ControlNet to go on from, of any layout. null: a new one, from the base's blocks", "train.kind=controlnet")


class Parallel(Section):
    """What several processes share besides batches."""

    fsdp: bool = setting(
        False, "share weights, gradients and the optimiser's state (torch's FSDP2), as `accelerate launch --use_fsdp` does")
    deepspeed: Path | None = setting(
        None, "path of a DeepSpeed configuration (JSON) with ZeRO 1 or 2: share gradients and the optimiser's state, as `accelerate "
              "launch --use_deepspeed --deepspeed_config_file` does. Needs the package deepspeed")


class Lora(Section):
    rank: Whole = setting(16, "rank of every adapter", "train.kind=lora", ge=1, le=1024)
    alpha: Number | None = setting(None, "the change is scaled by alpha / rank. null: alpha = rank", "train.kind=lora", gt=0)
    targets: list[str] = setting(
        ["attention+out"], "layers, by names, patterns (attn1.to_*) or one of attention, attention+out, all-linear",
        "train.kind=lora", min_length=1)
    dropout: Share = setting(0.0, "share of an adapter's inputs that are left out in training", "train.kind=lora")
    dora: bool = setting(False, "DoRA: also learn the magnitude of each output, which ComfyUI's own LoRA loader leaves out", "train.kind=lora")


FLOW = f"{SANAS} train.kind=lora|full|controlnet"
SCM = "train.kind=sprint objective.distillation=scm"
TRAJECTORIES = "train.kind=sprint objective.distillation=trajectories"


class Objective(Section):
    shift: Number | None = setting(
        None, "timestep shift in training. null: `sampling.shift`", FLOW, gt=0)
    logit_mean: Number = setting(0.0, "mean of the normal whose logistic is the noise level before the shift", FLOW)
    logit_std: Number = setting(1.0, "standard deviation of the same", FLOW, gt=0)
    whole_timesteps: bool = setting(
        True, "noise levels from the authors' table of 1000 instead of a continuum", FLOW)
    empty_mask: Literal["caption", "own"] = setting(
        "caption", "tokens that a dropped caption shows: as many as the caption had, as the authors train, or the empty text's own",
        FLOW)
    picture_share: Number = setting(
        0.3, "share of rows trained as image to video: their first frame is given. Ours: the authors publish none, and text to video "
             "has to stay. 1: image to video alone, which validation then draws too", "model.family=sana_video", ge=0, le=1)
    noise_lean: Number = setting(
        1.0, "above 1, noisy timesteps come oftener than others: what a clip shows is decided there. 1: evenly, as the authors",
        "model.family=cogvideox", gt=0, le=4)
    last_share: Share = setting(
        0.0, "share of rows at the last timestep besides, which is pure noise, where sampling begins", "model.family=cogvideox")
    image_dropout: Share = setting(
        0.05, "share of rows trained without their first frame", "model.conditioning=image")
    image_noise: list[Number] = setting(
        [-3.0, 0.5], "noise on the first frame's pixels (-1 to 1): mean and standard deviation of the log of its size",
        "model.conditioning=image", min_length=2, max_length=2)
    control_layers: Whole = setting(7, "blocks of the base that the ControlNet copies", "train.kind=controlnet", ge=1)
    distillation: Literal["scm", "trajectories"] = setting(
        "scm", "scm: consistency along the teacher's path, the authors' way; trajectories: what the teacher makes of each row's "
               "caption in `teacher_steps` is drawn before training, and the student learns to name it, in far fewer steps",
        "train.kind=sprint")
    teacher_steps: Whole = setting(
        8, "sampling steps of the teacher, by Flow-DPM-Solver++", TRAJECTORIES, ge=2, le=100)
    from_noise: Share = setting(
        0.5, "share of rows that start from the teacher's noise; the others from its latent under new noise, for a student that "
             "takes more than one step", TRAJECTORIES)
    sigma_data: Number = setting(0.5, "standard deviation that latents are scaled to", SCM, gt=0)
    time_mean: Number = setting(0.2, "mean of the log of tan(t) * sigma_data, the student's times", SCM)
    time_std: Number = setting(1.6, "standard deviation of the same", SCM, gt=0)
    guidance: list[Number] = setting(
        [4.0, 4.5, 5.0], "guidance scales that are distilled, drawn a row", "train.kind=sprint", min_length=1)
    tangent_warmup: Whole = setting(
        4000, "steps in which the tangent's second part grows to full size", SCM, ge=1)
    adversarial: Number = setting(
        0.5, "weight of the discriminator's loss (LADD). 0: none, and no discriminator", SCM, ge=0)
    discriminator_layers: list[Whole] = setting(
        [2, 8, 14, 19], "teacher's blocks whose output the discriminator judges", SCM, min_length=1)
    discriminator_mean: Number = setting(-0.6, "as time_mean, of the noise on what the discriminator sees", SCM)
    discriminator_std: Number = setting(1.0, "as time_std, of the same", SCM, gt=0)
    max_time_share: Share = setting(0.5, "share of the adversarial rows that start from pure noise", SCM)


class Validation(Section):
    prompts: list[str] | Path = setting(
        [], "prompts drawn before the first step and every `every`: a list, or the path of a text file, one a line")
    every: Whole | None = setting(250, "steps. null: never", ge=1)
    steps: Whole | None = setting(None, "sampling steps. null: `sampling.steps`", ge=1, le=1000)
    guidance: Number | None = setting(None, "CFG scale. null: `sampling.guidance`", ge=0)
    seeds: Wholes = setting([0], "a picture or clip a prompt and seed")
    levels: list[Part] = setting(
        [0.1, 0.3, 0.5, 0.7, 0.9], "noise levels, 0 to 1 of the schedule, at which the held-out rows' loss is measured",
        min_length=1)


class Output(Section):
    folder: Path = setting("output/train", "each run gets a folder `name` in it; a run found there goes on")
    name: str = setting("run", "name of the run and of the files it writes", pattern=r"^[\w][\w .+-]*$")
    save_every: Whole | None = setting(500, "steps between checkpoints. null: by minutes alone", ge=1)
    save_minutes: Number | None = setting(None, "minutes between checkpoints. null: by steps alone", gt=0)
    keep: Whole = setting(3, "checkpoints kept, the newest, besides the best", ge=1)
    dtype: Literal["fp32", "bf16", "fp16"] = setting(
        "fp32", "number type of the result's file; checkpoints to go on from are in fp32")
    tracker: Literal["none", "tensorboard", "trackio"] = setting("tensorboard", "where curves go besides the run's report")


class Config(Section):
    model: Model = setting(Model(), "what is trained")
    sampling: Sampling = setting(Sampling(), "how such a model is sampled; the variant sets all of it")
    data: Data = setting(Data(), "what it is trained on")
    train: Train = setting(Train(), "how")
    parallel: Parallel = setting(Parallel(), "what several processes share besides batches")
    lora: Lora = setting(Lora(), "the adapters of kind lora")
    objective: Objective = setting(Objective(), "the loss")
    validation: Validation = setting(Validation(), "pictures and losses on the way")
    output: Output = setting(Output(), "what is kept, and where")

    # What a null stands for.

    @property
    def alpha(self) -> float:
        """lora.alpha, or the rank."""
        return float(self.lora.rank) if self.lora.alpha is None else self.lora.alpha

    @property
    def shift(self) -> float | None:
        """objective.shift, or the one that the model is sampled with. None where there is neither (Sprint)."""
        return self.sampling.shift if self.objective.shift is None else self.objective.shift

    @property
    def validation_steps(self) -> int | None:
        return self.sampling.steps if self.validation.steps is None else self.validation.steps

    @property
    def validation_guidance(self) -> float | None:
        return self.sampling.guidance if self.validation.guidance is None else self.validation.guidance


def only_of(field) -> list[tuple[str, tuple[str, ...]]]:
    """[("train.kind", ("lora",))] of a field with `only`: all of them have to hold."""
    extra = field.json_schema_extra
    conditions = [condition.partition("=") for condition in extra["only"].split()] if extra else []
    return [(key, tuple(values.split("|"))) for key, _, values in conditions]


def fields(section: type[Section] = Config, prefix: str = "") -> dict[str, Any]:
    """{dotted key: field} of every setting, in the order of the file."""
    found = {}
    for name, field in section.model_fields.items():
        if is_section(field.annotation):
            found |= fields(field.annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = field
    return found


def is_section(annotation) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def get(config: Config, key: str):
    """The value at a dotted key."""
    value = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
