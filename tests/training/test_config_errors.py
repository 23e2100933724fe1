"""Golden messages: what is wrong with a file is said at once, where it stands, with what is allowed and the nearest name."""

import random
import re

import pytest

from sanacog.training.config import Config, fields
from sanacog.training.config_files import ConfigError, load, variants

TRAIN_HAS = ", ".join(Config.model_fields["train"].annotation.model_fields)
DATA_HAS = ", ".join(Config.model_fields["data"].annotation.model_fields)
TINY = "model: {variant: tiny_sana}\n"
VIDEO = "model: {variant: cogvideox_5b}\n"
TOP = "model, sampling, data, train, parallel, lora, objective, validation, output, extends, environments"

# name: (files by name, the first of them is loaded; overrides; environment; lines of the message)
BROKEN = {
    "unknown keys": (
        {"a.yaml": TINY + "train:\n  stepz: 5\n  Lr: 1e-4\ntrian:\n  lr: 1\nlr: 2e-4\ntrain.seed: 3\nlora:\n"
                          "  steps: 1\n"}, [], {},
        [f"a.yaml:3:3: train.stepz: unknown; train has {TRAIN_HAS}; did you mean 'steps'?",
         f"a.yaml:4:3: train.Lr: unknown; train has {TRAIN_HAS}; did you mean 'lr'?",
         f"a.yaml:5:1: trian: unknown; the top has {TOP}; did you mean 'train'?",
         f"a.yaml:7:1: lr: unknown; the top has {TOP}; did you mean 'train.lr'?",
         "a.yaml:8:1: train.seed: found a key with dots. In a file it is written as `train:`, and below it the rest.",
         "a.yaml:10:3: lora.steps: unknown; lora has rank, alpha, targets, dropout, dora; did you mean 'sampling.steps' "
         "or 'train.steps' or "
         "'validation.steps'?"]),
    "wrong types": (
        {"a.yaml": TINY + "train:\n  steps: many\n  lr: fast\n  seed: true\n  warmup: 2.5\n  clip: [1]\n"
                          "  gradient_checkpointing: 3\n"
                   "  betas: 0.9\nlora: 16\ndata:\n  path: 12\n  batch_size: {x: 1}\noutput:\n  name: null\n"}, [], {},
        ["a.yaml:10:7: lora: found 16; allowed: a section with rank, alpha, targets, dropout, dora.",
         "a.yaml:13:15: data.batch_size: found a section; allowed: a whole number of 1 or more.",
         "a.yaml:12:9: data.path: found 12; allowed: text, or null; put it in quotes.",
         "a.yaml:3:10: train.steps: found the text 'many'; allowed: a whole number of 1 or more.",
         "a.yaml:4:7: train.lr: found the text 'fast'; allowed: a number above 0, at most 10.",
         "a.yaml:9:10: train.betas: found 0.9; allowed: a list of 2 to 3 (a number from 0 to below 1), or null.",
         "a.yaml:6:11: train.warmup: found 2.5; allowed: a whole number of 0 or more.",
         "a.yaml:7:9: train.clip: found [1]; allowed: a number above 0, or null.",
         "a.yaml:5:9: train.seed: found true; allowed: a whole number from 0 to 4294967295.",
         "a.yaml:8:27: train.gradient_checkpointing: found 3; allowed: true or false.",
         "a.yaml:15:9: output.name: found null; allowed: text of letters, digits, spaces and _ . + -, a letter, digit or "
         "_ first."]),
    "bounds and choices": (
        {"a.yaml": TINY + "train:\n  lr: 0\n  kind: lorra\n  ema: 1.0\n  optimizer: adam\n  betas: [0.9]\nlora:\n  rank: 0\n"
                   "data:\n  validation: 1.5\nvalidation:\n  levels: [0.5, 1.5]\noutput:\n  name: ../x\n"}, [], {},
        ["a.yaml:11:15: data.validation: found 1.5; allowed: a number from 0 to below 1, or text, or null.",
         "a.yaml:4:9: train.kind: found the text 'lorra'; allowed: one of lora, full, controlnet, sprint; did you mean 'lora'?",
         "a.yaml:3:7: train.lr: found 0; allowed: a number above 0, at most 10.",
         "a.yaml:6:14: train.optimizer: found the text 'adam'; allowed: one of adamw, adamw8bit, came, prodigy, muon; "
         "did you mean 'adamw'?",
         "a.yaml:7:10: train.betas: found [0.9]; allowed: a list of 2 to 3 (a number from 0 to below 1), or null.",
         "a.yaml:5:8: train.ema: found 1.0; allowed: a number from 0 to below 1, or null.",
         "a.yaml:9:9: lora.rank: found 0; allowed: a whole number from 1 to 1024.",
         "a.yaml:13:17: validation.levels.1: found 1.5; allowed: a number from 0 to 1.",
         "a.yaml:15:9: output.name: found the text '../x'; allowed: text of letters, digits, spaces and _ . + -, a "
         "letter, digit or _ first."]),
    "a circle of files": (
        {"a.yaml": "extends: b\n", "b.yaml": "extends: [c]\n", "c.yaml": TINY + "extends:\n  - b.yaml\n"}, [], {},
        ["c.yaml:3:5: extends: a circle: b.yaml -> c.yaml -> b.yaml."]),
    "files that are not there": (
        {"a.yaml": TINY + "extends: [train/sana_lorra, gone, 3]\nvalidation:\n  prompts: prompts.txt\ndata: {path: x}\n"},
        ["model.transformer=gone.safetensors"], {},
        ["a.yaml:2:35: extends: found 3; allowed: the name of a file, or a list of names.",
         "a.yaml:2:11: extends: 'train/sana_lorra' is no file beside this one, nor a shipped one; did you mean "
         "'train/sana_lora'?",
         "a.yaml:2:29: extends: 'gone' is no file beside this one, nor a shipped one.",
         "model.transformer=gone.safetensors on the command line: model.transformer: found 'gone.safetensors', where "
         "nothing lies "
         "(from HERE). Give a file or folder that is there.",
         "a.yaml:4:12: validation.prompts: found 'prompts.txt', which is no file. Give a text file, one prompt a line, "
         "or a list."]),
    "variables": (
        {"a.yaml": TINY + "train:\n  steps: ${train.warmup}\n  warmup: ${train.steps}\n  lr: ${train.learning}\n"
                          "  seed: ${oc.env:SANACOG_NOT_SET}\n"
                   "  clip: ${oc.envv:X}\n  kind: '${'\nlora:\n  targets: [x, '${model.famly}']\n"}, [], {},
        ["a.yaml:8:9: train.kind: found "
         "'${', which is not written as it should be; allowed: ${section.key}, ${oc.env:NAME,default} and ${pack:PATH}.",
         "a.yaml:3:10: train.steps: found '${train.warmup}', which goes in a circle.",
         "a.yaml:4:11: train.warmup: found '${train.steps}', which goes in a circle.",
         "a.yaml:5:7: train.lr: found '${train.learning}': there is no setting train.learning; did you mean 'train.lr'?",
         "a.yaml:6:9: train.seed: found '${oc.env:SANACOG_NOT_SET}': the environment variable SANACOG_NOT_SET is not "
         "set. Set it, or give a "
         "default: ${oc.env:SANACOG_NOT_SET,default}.",
         "a.yaml:7:9: train.clip: found '${oc.envv:X}'; allowed: ${section.key}, ${oc.env:NAME,default} and ${pack:PATH}.",
         "a.yaml:10:16: lora.targets.1: found '${model.famly}': there is no setting model.famly; did you mean "
         "'model.family'?"]),
    "overrides": (
        {"a.yaml": TINY}, ["train.lr", "=3", "train.steps=", "train.stepz=3", "train.lr=high",
                             "validation.seeds=[1", "x={a: 1}", "lora=4"],
        {"SANACOG__TRAIN__SEEDS": "1", "SANACOG__TRAIN__WARMUP": "-1"},
        ["'train.lr' on the command line: expected section.key=value, as in train.lr=2e-4.",
         "'=3' on the command line: expected section.key=value, as in train.lr=2e-4.",
         "train.steps= on the command line: train.steps: nothing behind the =. Write null to clear it.",
         "validation.seeds=[1 on the command line: validation.seeds: no YAML: expected ',' or ']', but got '<stream end>'.",
         f"SANACOG__TRAIN__SEEDS: train.seeds: unknown; train has {TRAIN_HAS}; did you mean 'seed'?",
         f"train.stepz=3 on the command line: train.stepz: unknown; train has {TRAIN_HAS}; did you mean 'steps'?",
         f"x={{a: 1}} on the command line: x: unknown; the top has {TOP}.",
         "lora=4 on the command line: lora: found 4; allowed: a section with rank, alpha, targets, dropout, dora.",
         "train.lr=high on the command line: train.lr: found the text 'high'; allowed: a number above 0, at most 10.",
         "SANACOG__TRAIN__WARMUP: train.warmup: found -1; allowed: a whole number of 0 or more."]),
    "environments": (
        {"a.yaml": TINY + "environments:\n  night:\n    train: {stepz: 1}\n    extends: b\n  day: 3\n"
                          "", "a.dawn.yaml": "{}\n"}, [],
        {"SANACOG_ENV": "nigth"},
        ["a.yaml:5:14: environments.night.extends: not in an overlay; put it in the file itself.",
         f"a.yaml:4:13: train.stepz: unknown; train has {TRAIN_HAS}; did you mean 'steps'?",
         "a.yaml:6:8: environments.day: found 3; allowed: sections as in a file.",
         "SANACOG_ENV: found 'nigth'; allowed: dawn, day, night; did you mean 'night'?"]),
    "an environment's file": (
        {"a.yaml": TINY, "a.night.yaml": "train:\n  lr: 1\n  lr: 2\nextends: b\n"}, [], {"SANACOG_ENV": "night"},
        ["a.night.yaml:3:3: train.lr: stands twice, first in line 2. Take one of them out.",
         "a.night.yaml:4:10: extends: not in an overlay; put it in the file itself."]),
    "what environments are": (
        {"a.yaml": TINY + "train: {kind: full}\nlora: {rank: 4}\nenvironments: [night]\n"}, [], {"SANACOG_ENV": "night"},
        ["a.yaml:4:15: environments: found [night]; allowed: a section of each environment.",
         "SANACOG_ENV: found 'night'; the files have no environments. Unset it, or write `environments:` with night: in "
         "the file.",
         "a.yaml:3:14: lora.rank: is for train.kind lora alone, and train.kind is full. Take it out."]),
    "what follows from a mistake is not told": (
        {"a.yaml": TINY + "train:\n  kind: {full: 1}\nlora: {rank: 4}\nobjective: {control_layers: 7}\n"}, [], {},
        ["a.yaml:3:9: train.kind: found a section; allowed: one of lora, full, controlnet, sprint."]),
    "nor what follows from a name": (
        {"a.yaml": TINY + "train:\n  knid: controlnet\nobjective: {control_layers: 7}\n"}, [], {},
        [f"a.yaml:3:3: train.knid: unknown; train has {TRAIN_HAS}; did you mean 'kind'?"]),
    "nor from a section's": (
        {"a.yaml": TINY + "trian:\n  kind: controlnet\nobjective: {control_layers: 7}\n"}, [], {},
        [f"a.yaml:2:1: trian: unknown; the top has {TOP}; did you mean 'train'?"]),
    "YAML": (
        {"a.yaml": TINY + "train:\n  steps: 5\n  steps: 6\n  lr: [1\n"}, [], {},
        ["a.yaml:6:1: no YAML: expected ',' or ']', but got '<stream end>'.", "a.yaml: model.family: nothing given. Name "
         "a released model, "
         f"as in model.variant={variants()[0]}, or the family: sana, sana_video or cogvideox."]),
    "twice": (
        {"a.yaml": TINY + "train:\n  steps: 5\n  steps: 6\n"}, [], {},
        ["a.yaml:4:3: train.steps: stands twice, first in line 3. Take one of them out."]),
    "a variant": (
        {"a.yaml": "model:\n  variant: cogvideox_5b_i2\ntrain:\n  lr: x\n"}, [], {},
        [f"a.yaml:2:12: model.variant: found 'cogvideox_5b_i2'; allowed: {', '.join(variants())}; did you mean "
         f"'cogvideox_5b_i2v'?",
         "a.yaml:4:7: train.lr: found the text 'x'; allowed: a number above 0, at most 10."]),
    "another family than the variant's": (
        {"a.yaml": "model:\n  variant: cogvideox_5b\n  family: sana\n"}, [], {},
        ["a.yaml:3:11: model.family: found sana; the variant cogvideox_5b is of cogvideox. Take one of them out."]),
    "no model": (
        {"a.yaml": "train: {lr: 1e-4}\n"}, [], {},
        [f"a.yaml: model.family: nothing given. Name a released model, as in model.variant={variants()[0]}, or the "
         f"family: sana, sana_video or cogvideox."]),
    "adapters in a full fine-tune": (
        {"a.yaml": TINY + "train: {kind: full, teacher: x}\nlora:\n  rank: 4\n  alpha: null\ndata:\n  frames: 9\n"
                          "model.x: 1\n"}, [], {},
        [f"a.yaml:8:1: model.x: unknown; the top has {TOP}; did you mean 'model'?",
         "a.yaml:7:11: data.frames: is for model.family sana_video or cogvideox alone, and model.family is sana. Take it out.",
         "a.yaml:2:30: train.teacher: is for train.kind sprint alone, and train.kind is full. Take it out.",
         "a.yaml:4:9: lora.rank: is for train.kind lora alone, and train.kind is full. Take it out."]),
    "what is off is no promise, what differs from the default is": (
        {"a.yaml": VIDEO + "train: {kind: full, teacher: null}\nlora: {dora: false, alpha: null, dropout: 0}\n"
                   "model2: 1\ndata: {instruction: false}\n"}, ["model.quantize=none", "model.distilled=false"], {},
        [f"a.yaml:4:1: model2: unknown; the top has {TOP}; did you mean 'model'?",
         "a.yaml:5:21: data.instruction: is for model.family sana or sana_video alone, and model.family is cogvideox. Take it out.",
         "a.yaml:3:43: lora.dropout: is for train.kind lora alone, and train.kind is full. Take it out."]),
    "sizes of CogVideoX": (
        {"a.yaml": VIDEO + "data:\n  resolution: [480, 721]\n  frames: [48, 49, 57, 0]\n  instruction: true\n"
                           "  buckets:\n    - [480, 720]\n    - [50, 480, 720]\n"
                   "    - [9, 480]\n    - [9, 5, 480, 1]\n"}, [], {},
        ["a.yaml:3:21: data.resolution.1: found 721; sides of CogVideoX 5B are multiples of 16 px: 720 or 736.",
         "a.yaml:4:12: data.frames.0: found 48; CogVideoX 5B has 8 n + 1 frames: 41 or 49.",
         "a.yaml:4:20: data.frames.2: found 57; CogVideoX 5B has 49 frames at most.",
         "a.yaml:4:24: data.frames.3: found 0; CogVideoX 5B has 8 n + 1 frames: 1 or 9.",
         "a.yaml:8:8: data.buckets.1.0: found 50; CogVideoX 5B has 8 n + 1 frames: 49 or 57.",
         "a.yaml:9:8: data.buckets.2.0: found 9; sides of CogVideoX 5B are multiples of 16 px: 16.",
         "a.yaml:10:7: data.buckets.3: found a list of 4; allowed: [height, width] or [frames, height, width].",
         "a.yaml:5:16: data.instruction: is for model.family sana or sana_video alone, and model.family is cogvideox. Take it out."]),
    "1.5": (
        {"a.yaml": "model: {variant: cogvideox_1_5_5b}\ndata:\n  resolution: 768\n  frames: [49, 73, 177]\n"
                   ""}, ["train.kind=controlnet"], {},
        ["train.kind=controlnet on the command line: train.kind: controlnet is Sana's, and model.family is cogvideox; "
         "allowed: lora or full.",
         "a.yaml:3:15: data.resolution: found 768; allowed for CogVideoX: [height, width].",
         "a.yaml:4:16: data.frames.1: found 73; CogVideoX 1.5 5B has 16 n + 1 frames: 65 or 81.",
         "a.yaml:4:20: data.frames.2: found 177; CogVideoX 1.5 5B has 161 frames at most."]),
    "sizes of SANA-Video with Wan's autoencoder": (
        {"a.yaml": "model: {variant: sana_video_2b_480p}\ndata: {resolution: 480, frames: [80, 81]}\n"
                   "train: {kind: controlnet}\n"}, [], {},
        ["a.yaml:3:15: train.kind: controlnet is Sana's, and model.family is sana_video; allowed: lora or full.",
         "a.yaml:2:20: data.resolution: found 480; allowed for SANA-Video: [height, width].",
         "a.yaml:2:34: data.frames.0: found 80; SANA-Video 2B 480p has 4 n + 1 frames: 77 or 81."]),
    "sizes of SANA-Video with LTX-2's": (
        {"a.yaml": "model: {variant: sana_video_2b_720p}\ndata: {buckets: [[81, 720, 1280], [77, 704, 1280]]}\n"}, [], {},
        ["a.yaml:2:23: data.buckets.0.1: found 720; sides of SANA-Video 2B 720p are multiples of 32 px: 704 or 736.",
         "a.yaml:2:36: data.buckets.1.0: found 77; SANA-Video 2B 720p has 8 n + 1 frames: 73 or 81."]),
    "sizes of the embedded SANA-Video": (
        {"a.yaml": "model: {variant: tiny_sana_video}\ndata: {frames: [5, 9]}\n"}, [], {},
        ["a.yaml:2:17: data.frames.0: found 5; SANA-Video, 6 layers of width 128 has 8 n + 1 frames: 1 or 9."]),
    "SANA-Video without a variant": (
        {"a.yaml": "model: {family: sana_video}\ndata: {motion_score: 0, frames: 5}\n"}, [], {},
        ["a.yaml:2:22: data.motion_score: found 0; allowed: a whole number from 1 to 100, or null.",
         "a.yaml: model.latents: nothing given; a model.variant has it. Allowed: wan, ltx2 or cogvideox."]),
    "Sana": (
        {"a.yaml": "model: {variant: sana_sprint_600m, quantize: int8}\ndata:\n  resolution: 1000\n"
                   "  buckets: [[9, 256, 256], [256, 260], [1, 256, 288]]\n"
                   "train: {betas: [0.9, 0.99], optimizer: came, warmup: 20, steps: 20, schedule: cosine}\noutput: "
                   "{save_every: null}\n"}, [], {},
        ["a.yaml: train.kind: lora on Sana Sprint 0.6B 1024px would undo what makes it fast. Train on sana_1_5_1600m_1024px or "
         "sana_sprint_1600m_teacher, or take kind sprint.",
         "a.yaml:5:16: train.betas: found 2 numbers; train.optimizer came has 3.",
         "a.yaml:5:54: train.warmup: found 20, and train.steps is 20: the cosine schedule has no step left.",
         "a.yaml:6:22: output.save_every: null, and output.save_minutes too: a run would never be saved; give one of them.",
         "a.yaml:3:15: data.resolution: found 1000; sides of Sana Sprint 0.6B 1024px are multiples of 32 px: 992 or 1024.",
         "a.yaml:4:13: data.buckets.0: found [9, 256, 256]; Sana draws pictures; allowed: [height, width].",
         "a.yaml:4:34: data.buckets.1.1: found 260; sides of Sana Sprint 0.6B 1024px are multiples of 32 px: 256 or 288."]),
    "kinds": (
        {"a.yaml": "model: {variant: cogvideox_5b, quantize: fp8}\ntrain: {kind: full}\n"
                   "objective: {image_noise: [-3, 0.5], shift: 3}\n"}, [], {},
        ["a.yaml:1:42: model.quantize: is for train.kind lora or controlnet alone, and train.kind is full. Take it out.",
         "a.yaml:3:44: objective.shift: is for model.family sana or sana_video alone, and model.family is cogvideox. Take it out.",
         "a.yaml:3:26: objective.image_noise: is for model.conditioning image alone, and model.conditioning is none. "
         "Take it out."]),
    "what a run needs that draws nothing": (
        {"a.yaml": "model: {family: sana}\ndata: {path: x}\nvalidation: {prompts: [x], every: null}\n"}, [], {},
        ["a.yaml: model.transformer: nothing given. Give the path of Sana's network: model.transformer=PATH.",
         "a.yaml: data.resolution: nothing given, nor data.buckets. Give the size to train on; a model.variant has one."]),
    "what a run needs that has no prompts": (
        {"a.yaml": "model: {family: cogvideox}\ndata: {path: x, buckets: [[9, 480, 720]]}\n"}, [], {},
        ["a.yaml: model.transformer: nothing given. Give the path of CogVideoX's network: model.transformer=PATH."]),
    "what a run needs that is not trained here": (
        {"a.yaml": "model: {variant: longsana_2b_480p, transformer: a.yaml, autoencoder: a.yaml, text_encoder: a.yaml}\n"
                   "data: {path: x}\n"}, [], {},
        ["configs/models/longsana_2b_480p.yaml:8:14: model.distilled: true: LongSANA 2B 480p draws in a few steps, which training here would undo. Train on "
         "sana_video_2b_480p, sana_video_2b_720p or sana_video_2_0_5b_720p."]),
    "what a run needs to distil": (
        {"a.yaml": "model: {variant: tiny_sana_sprint}\ndata: {path: x}\ntrain: {kind: sprint}\n"}, [], {},
        ["a.yaml: train.teacher: nothing given, and train.kind is sprint. Give the path of the teacher's network: "
         "train.teacher=PATH."]),
    "what a run needs": (
        {"a.yaml": "model: {family: cogvideox, conditioning: control}\nvalidation: {prompts: [x]}\n"}, [], {},
        ["a.yaml:1:42: model.conditioning: found control: such models are not trained here; allowed: none or image.",
         "a.yaml: model.transformer: nothing given. Give the path of CogVideoX's network: model.transformer=PATH.",
         "a.yaml: data.path: nothing given. Give the folder of your pictures or clips with captions: data.path=FOLDER.",
         "a.yaml: data.resolution: nothing given, nor data.buckets. Give the size to train on; a model.variant has one.",
         "a.yaml: data.frames: nothing given, nor data.buckets. Give the frames of a clip; a model.variant has them.",
         "a.yaml: validation.steps: nothing given, nor in `sampling`; a model.variant has it.",
         "a.yaml: validation.guidance: nothing given, nor in `sampling`; a model.variant has it."]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_messages(name, tmp_path, monkeypatch):
    files, overrides, environ, expected = BROKEN[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SANACOG_NOT_SET", raising=False)
    for file, text in files.items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    complete = name == "files that are not there" or name.startswith("what a run needs")
    with pytest.raises(ConfigError) as caught:
        load([next(iter(files))], overrides, environ, complete)
    assert str(caught.value).replace(str(tmp_path), "HERE").split("\n") == expected


def test_a_file_that_is_not_there():
    with pytest.raises(ConfigError) as caught:
        load(["configs/train/sana_lor.yaml", "nowhere/like_it"], environ={})
    assert str(caught.value).split("\n")[:2] == [
        "configs/train/sana_lor.yaml: no such file, nor configs/configs/train/sana_lor.yaml in the pack; did you mean "
        "'train/sana_lora'?",
        "nowhere/like_it: no such file, nor configs/nowhere/like_it.yaml in the pack."]


VALUES = [None, True, False, 0, 1, -1, 3, 2.5, 1e-4, "", "x", "1", "no", "fast", "${train.steps}", "${x}", "${",
          "lora", "full", "sana",
          [], [1], [0.5, 0.9], ["x"], [None], [[1]], [[9, 480, 720]], [["x"]], {}, {"x": 1}, {"steps": 2}, [{}], "tiny_sana",
          "cogvideox_5b_i2v", "~", "$", "\\"]


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_given_loads_or_is_told(seed, tmp_path, monkeypatch):
    """No other error than ConfigError, and each line of it has a place and a key."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("model: {variant: tiny_sana}\n")
    draw, keys = random.Random(seed), [*fields(), *Config.model_fields, "model.published", "train.stepz", "x"]
    told = 0
    for _ in range(30):
        given = [f"{draw.choice(keys)}={_flow(draw.choice(VALUES))}" for _ in range(draw.randint(1, 3))]
        try:
            loaded = load(["a.yaml"], given, {}, complete=False)
            (tmp_path / "b.yaml").write_text(loaded.show(), encoding="utf-8")
            assert load(["b.yaml"], environ={}, complete=False).config == loaded.config, given
        except ConfigError as error:
            told += 1
            for line in str(error).split("\n"):
                place = r"(.* on the command line|(configs/models/\w+|a)\.yaml(:\d+:\d+)?)"
                assert re.match(rf"{place}: [\w.]+: .+[.?]$", line), (given, line)
    assert told


def _flow(value):
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_flow(item)}" for name, item in value.items()) + "}"
    return f"'{value}'" if isinstance(value, str) else "null" if value is None else str(value)
