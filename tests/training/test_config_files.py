"""Where the value of a setting comes from, and that it is said."""

import pytest

from sanacog.training.config import Config, fields, get
from sanacog.training.config_files import SHIPPED, ConfigError, load, variants
from sanacog.training.config_yaml import ROOT

TRAIN = sorted(path.stem for path in (SHIPPED / "train").glob("*.yaml"))
# Settings without which nothing is trained, and that need no files.
BASE = "model: {variant: tiny_sana}\ndata: {path: x}\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def one(files, *overrides, key="train.steps", environ=None, complete=False):
    """(value, source) of a setting."""
    loaded = load([files] if isinstance(files, str) else files, overrides, environ or {}, complete)
    return get(loaded.config, key), loaded.sources[key]


def test_later_wins(write):
    """default < preset < base < child < overlay < overlay's file < variable < command line"""
    write("base.yaml", BASE + "train:\n  steps: 2\n  lr: 1e-3\n")
    write("child.yaml", "extends: base\ntrain:\n  steps: 3\nenvironments:\n  ci:\n    train:\n      steps: 4\n")
    assert one("base.yaml", key="train.seed") == (0, "default")
    assert one("base.yaml", key="sampling.steps") == (20, "configs/models/tiny_sana.yaml:14:10")
    assert one("base.yaml") == (2, "base.yaml:4:10")
    assert one("child.yaml") == (3, "child.yaml:3:10")
    assert one("child.yaml", key="train.lr") == (1e-3, "base.yaml:5:7")
    ci = {"SANACOG_ENV": "ci"}
    assert one("child.yaml", environ=ci) == (4, "child.yaml:7:14")
    write("child.ci.yaml", "train: {steps: 5}\n")
    assert one("child.yaml", environ=ci) == (5, "child.ci.yaml:1:16")
    assert one("child.yaml") == (3, "child.yaml:3:10")
    write("child.night.yaml", "train: {seed: 9}\n")
    assert one("child.yaml", key="train.seed", environ=ci) == (0, "default")
    assert one("child.yaml", key="train.seed", environ={"SANACOG_ENV": "night"}) == (9, "child.night.yaml:1:15")
    ci["SANACOG__TRAIN__STEPS"] = "6"
    assert one("child.yaml", environ=ci) == (6, "SANACOG__TRAIN__STEPS")
    assert one("child.yaml", "train.steps=7", environ=ci) == (7, "train.steps=7 on the command line")
    assert one("child.yaml", "train.steps=7", "train.steps=8", environ=ci)[0] == 8


def test_an_overlay_of_a_base_wins_over_the_child(write):
    write("base.yaml", BASE + "environments: {ci: {train: {steps: 4}}}\n")
    write("child.yaml", "extends: base\ntrain: {steps: 3}\n")
    assert one("child.yaml", environ={"SANACOG_ENV": "ci"}) == (4, "base.yaml:3:36")
    assert one("child.yaml", environ={"SANACOG_ENV": ""}) == (3, "child.yaml:2:16")
    write("empty.yaml", "extends: child\nenvironments:\n  day:\n")
    assert one("empty.yaml", environ={"SANACOG_ENV": "day"}) == (3, "child.yaml:2:16")


def test_several_bases_and_files(write):
    write("a.yaml", BASE + "train: {steps: 1, seed: 1, warmup: 1}\n")
    write("deep/b.yaml", "extends: ../c.yaml\ntrain: {steps: 2, seed: 2}\n")
    write("c.yaml", "train: {steps: 3, accumulation: 3}\n")
    write("d.yaml", "extends: [a, deep/b]\ntrain: {steps: 4}\n")
    config = load(["d.yaml"], environ={}, complete=False).config.train
    assert (config.steps, config.seed, config.warmup, config.accumulation) == (4, 2, 1, 3)
    assert one(["d.yaml", "c.yaml"]) == (3, "c.yaml:1:16")
    assert one(["d.yaml", "deep/b"]) == (2, "deep/b.yaml:2:16")


def test_the_same_base_twice_is_no_circle(write):
    write("base.yaml", BASE + "train: {steps: 1, seed: 5}\n")
    write("a.yaml", "extends: base\ntrain: {steps: 2}\n")
    write("b.yaml", "extends: base\ntrain: {warmup: 3}\n")
    write("c.yaml", "extends: [a, b]\n")
    assert one("c.yaml") == (1, "base.yaml:3:16")  # b's base came later


def test_sections_merge_lists_replace_null_forgets(write):
    write("base.yaml", BASE + "lora: {rank: 8, targets: [a, b]}\nvalidation: {seeds: [1, 2, 3]}\ntrain: {clip: 0.5}\n")
    write("list.yaml", "extends: base\nlora: {targets: [c]}\nvalidation: {seeds: 7}\n")
    config = load(["list.yaml"], environ={}, complete=False).config
    assert config.lora.targets == ["c"] and config.lora.rank == 8 and config.validation.seeds == [7]
    assert one("list.yaml", "lora=null", key="lora.rank") == (16, "default")
    assert one("list.yaml", "lora=null", "lora.rank=4", key="lora.rank") == (4, "lora.rank=4 on the command line")
    assert one("list.yaml", "lora={rank: 2}", key="lora.rank") == (2, "lora={rank: 2} on the command line")
    assert one("list.yaml", "train.clip=null", key="train.clip") == (None, "train.clip=null on the command line")
    write("comments.yaml", "extends: base\nlora:\n  # rank: 4\n")  # a section of comments forgets nothing
    assert one("comments.yaml", key="lora.rank") == (8, "base.yaml:3:14")
    write("null.yaml", "extends: base\nlora: null\n")
    assert one("null.yaml", key="lora.rank") == (16, "default")


def test_the_preset_lies_below_all(write):
    write("a.yaml", "extends: models/tiny_sana\nsampling: {steps: 9}\n")
    write("b.yaml", "sampling: {steps: 9}\nmodel: {variant: tiny_sana}\n")
    write("c.yaml", "extends: [b, models/tiny_cogvideox]\n")
    for name in ("a.yaml", "b.yaml"):
        assert one(name, key="sampling.steps")[0] == 9
        config = load([name], environ={}, complete=False).config
        assert (config.sampling.width, config.data.resolution) == (256, [256, 256])
        # Another variant brings its whole preset, and nothing of the first stays.
        config = load([name], ["model.variant=sana_600m_1024px"], {}, complete=False).config
        assert (config.sampling.steps, config.sampling.width, config.sampling.shift) == (9, 1024, 4.0)
        assert config.model.transformer is None
    assert one("c.yaml", key="model.family") == ("cogvideox", "configs/models/tiny_cogvideox.yaml:5:11")
    assert one("c.yaml", key="model.variant") == ("tiny_cogvideox", "configs/models/tiny_cogvideox.yaml:4:12")


def test_a_broken_preset_is_told(write, monkeypatch, tmp_path):
    write("presets/mine.yaml", "model: {family: sana, family: sana}\ntrain: {stepz: 1}\n")
    write("a.yaml", "model: {variant: mine}\n")
    monkeypatch.setattr("sanacog.training.config_files.PRESETS", tmp_path / "presets")
    with pytest.raises(ConfigError) as caught:
        load(["a.yaml"], environ={}, complete=False)
    first, second = str(caught.value).split("\n")
    assert first == "presets/mine.yaml:1:23: model.family: stands twice, first in line 1. Take one of them out."
    assert second.startswith("presets/mine.yaml:2:9: train.stepz: unknown;")


def test_shipped_files_by_name(write, monkeypatch):
    assert one("train/sana_lora", key="train.kind") == ("lora", "configs/train/sana_lora.yaml:16:9")
    monkeypatch.chdir(ROOT)
    assert one("configs/train/sana_lora.yaml", key="train.kind") == ("lora", "configs/train/sana_lora.yaml:16:9")


def test_variables(write, monkeypatch):
    monkeypatch.setenv("SANACOG_TEST_RATE", "5e-4")
    monkeypatch.delenv("SANACOG_TEST_NONE", raising=False)
    write("a.yaml", BASE + """
train:
  lr: ${oc.env:SANACOG_TEST_RATE}
  steps: ${validation.every}
  warmup: ${oc.env:SANACOG_TEST_NONE,7}
  clip: ${oc.env:SANACOG_TEST_NONE,null}
lora:
  targets: [attention, "x${train.steps}"]
output:
  name: steps_${train.steps}_of_${train.seed}
  folder: ${pack:models}/out
validation:
  prompts: ['\\${a}']
""")
    config = load(["a.yaml"], environ={}, complete=False).config
    assert (config.train.lr, config.train.steps, config.train.warmup, config.train.clip) == (5e-4, 250, 7, None)
    assert config.lora.targets == ["attention", "x250"] and config.output.name == "steps_250_of_0"
    assert config.output.folder == f"{ROOT / 'models'}/out" and config.validation.prompts == ["${a}"]
    assert one("a.yaml", "validation.every=99", key="output.name") == ("steps_99_of_0", "a.yaml:12:9")
    monkeypatch.setenv("SANACOG_TEST_RATE", "0.25")
    assert one("a.yaml", "data.validation=${oc.env:SANACOG_TEST_RATE}", key="data.validation")[0] == 0.25
    # The variant may be one, too.
    monkeypatch.setenv("SANACOG_TEST_RATE", "tiny_cogvideox")
    write("b.yaml", "model: {variant: '${oc.env:SANACOG_TEST_RATE}'}\n")
    assert one("b.yaml", key="data.frames") == ([9], "configs/models/tiny_cogvideox.yaml:24:11")


    write("c.yaml", "model: {variant: 'tiny_${model.family}', family: cogvideox}\n")
    assert one("c.yaml", key="data.frames")[0] == [9]


def test_a_preset_through_a_link_is_a_preset(write, tmp_path):
    (tmp_path / "pack").symlink_to(ROOT)
    write("a.yaml", "extends: pack/configs/models/tiny_sana\n")
    assert one("a.yaml", "model.variant=tiny_cogvideox", key="model.transformer")[0].endswith("tiny_cogvideox.safetensors")


def test_texts_on_the_command_line_need_no_quotes(write):
    write("a.yaml", BASE)
    for text in ("007", "1e-4", "12:30", "true", "no"):
        assert one("a.yaml", f"output.name={text}" if ":" not in text else f"data.path={text}",
                   key="output.name" if ":" not in text else "data.path")[0] == text
    assert one("a.yaml", "data.path='1: x'", key="data.path")[0] == "1: x"
    assert one("a.yaml", key="data.path", environ={"SANACOG__DATA__PATH": "C:\\x # y"}) == ("C:\\x # y", "SANACOG__DATA__PATH")
    assert one("a.yaml", "data.cache=null", key="data.cache")[0] is None
    assert one("a.yaml", "validation.seeds=[1,2]", key="validation.seeds")[0] == [1, 2]
    assert one("a.yaml", key="model.published.diffusers", environ={"SANACOG__MODEL__PUBLISHED__DIFFUSERS": "x/y"})[0] == "x/y"
    assert one("a.yaml", "data.instruction=no", key="data.instruction")[0] is False
    assert one("a.yaml", "train.ema=${data.caption_dropout}", key="train.ema")[0] == 0.1


def test_the_process_environment_is_read_by_itself(write, monkeypatch):
    write("a.yaml", BASE)
    monkeypatch.setenv("SANACOG__TRAIN__STEPS", "11")
    assert load(["a.yaml"], complete=False).config.train.steps == 11


@pytest.mark.parametrize("name", [f"train/{name}" for name in TRAIN] + [f"models/{name}" for name in variants()])
def test_what_is_shown_loads_again(name, write):
    kind = ["train.kind=sprint"] if "_sprint" in name and "teacher" not in name else []
    loaded = load([name], kind, {}, complete=False)
    shown = loaded.save("run")
    assert shown.read_text("utf-8") == loaded.show() and [path.name for path in shown.parent.iterdir()] == ["config.yaml"]
    again = load([shown], environ={}, complete=False)
    assert again.config == loaded.config
    assert again.show().count("# default") == 0


def test_what_is_shown_names_every_source(write):
    write("a.yaml", BASE + "validation:\n  prompts:\n    - 'a: \"b\" \\${c} of a red circle on a blue background'\n    - 'null'\n")
    loaded = load(["a.yaml"], ["train.lr=1e-5", "train.clip=null"], {"SANACOG__TRAIN__SEED": "3"}, complete=False)
    lines = loaded.show().split("\n")
    for line in (
        "  lr: 1.0e-05                             # train.lr=1e-5 on the command line",
        "  clip: null                              # train.clip=null on the command line",
        "  seed: 3                                 # SANACOG__TRAIN__SEED",
        "  warmup: 0                               # default",
        "  path: x                                 # a.yaml:2:14",
        "  prompts:  # a.yaml:5:5",
        '    - "a: \\"b\\" \\\\${c} of a red circle on a blue background"',
        '    - "null"',
    ):
        assert line in lines
    assert not any("teacher" in line or "frames" in line for line in lines)  # of other runs
    write("b.yaml", loaded.show())
    assert load(["b.yaml"], environ={}, complete=False).config == loaded.config


@pytest.mark.parametrize("name", TRAIN)
def test_shipped_files_need_paths_alone(name, write):
    """What a shipped file leaves open is said, and nothing else is."""
    with pytest.raises(ConfigError) as caught:
        load([f"train/{name}"], environ={})
    keys = [line.split(": ")[1] for line in str(caught.value).split("\n")]
    carried, sprint = name == "example" or name.startswith("tiny_"), name.endswith("_sprint")
    assert keys == ["model.transformer"] * (not carried) + ["data.path"] + ["train.teacher"] * sprint
    write("model/x", "")
    paths = ["model.transformer=model"] * (not carried) + ["train.teacher=model"] * sprint
    loaded = load([f"train/{name}"], ["data.path=x", *paths], {})
    assert loaded.config.data.path == "x"
    if "sana" in name and not sprint:  # a whole run can be tried with the tiny model
        variant, title = ("tiny_sana_video", "SANA-Video, 6 layers") if "video" in name else ("tiny_sana", "Sana, 6 layers")
        tiny = load([f"train/{name}"], ["data.path=x", f"model.variant={variant}", *paths[:1]], {}).config
        assert tiny.model.title.startswith(title)


def test_a_transformer_that_is_a_file_needs_the_others(write):
    write("a.safetensors", "")
    with pytest.raises(ConfigError) as caught:
        load(["train/sana_lora"], ["data.path=x", "model.transformer=a.safetensors"], {})
    assert str(caught.value).split("\n") == [
        f"configs/train/sana_lora.yaml: model.{name}: nothing given, and model.transformer is a file. Give its path: "
        f"model.{name}=PATH."
        for name in ("autoencoder", "text_encoder")]


def test_defaults_are_settings_that_hold():
    assert set(fields()) == {key for key in fields() if get(Config(), key) == fields()[key].default}
    with pytest.raises(ValueError):
        Config().train.lr = 1.0


def test_what_a_null_stands_for(write):
    write("a.yaml", BASE + "lora: {rank: 8}\n")
    config = load(["a.yaml"], environ={}, complete=False).config
    assert (config.alpha, config.shift, config.validation_steps, config.validation_guidance) == (8.0, 3.0, 20, 4.5)
    given = ["lora.alpha=4", "objective.shift=2", "validation.steps=5", "validation.guidance=1"]
    config = load(["a.yaml"], given, {}, complete=False).config
    assert (config.alpha, config.shift, config.validation_steps, config.validation_guidance) == (4.0, 2.0, 5, 1.0)
    assert load(["train/sana_sprint"], environ={}, complete=False).config.shift is None


def test_home_is_written_out(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/a/person")
    monkeypatch.setenv("USERPROFILE", "/home/of/a/person")
    write("a.yaml", BASE)
    assert one("a.yaml", "data.path=~/x", key="data.path")[0] == "/home/of/a/person/x"
    assert one("a.yaml", "data.validation=~/x", key="data.validation")[0] == "/home/of/a/person/x"
    assert one("a.yaml", "validation.prompts=~/x", key="validation.prompts")[0] == "/home/of/a/person/x"


def test_the_page_tells_of_files_that_load(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.setenv("MODELS", "/m")
    text = (ROOT / "docs" / "training_configuration.md").read_text("utf-8")
    example = text.split("```yaml\n")[1].split("```")[0]
    write("mine.yaml", example)
    loaded = load(["mine.yaml"], environ={}, complete=False)
    assert loaded.config.validation.every == loaded.config.train.steps == 800
    assert loaded.config.model.transformer == "/m/SANA1.5_1.6B_1024px_diffusers"
    assert one("mine.yaml", environ={"SANACOG_ENV": "night"})[0] == 8000
    write("bad.yaml", "# 1\n# 2\n# 3\n# 4\nextends: train/sana_lora\n# 6\n# 7\ntrain:\n  stepz: 1\n  lr: fast\n")
    with pytest.raises(ConfigError) as caught:
        load(["bad.yaml"], environ={}, complete=False)
    shown = str(caught.value).replace("bad.yaml", "my.yaml").replace(", ".join(
        ["optimizer", *list(type(loaded.config.train).model_fields)[4:]]), "...")
    assert shown in text
    for name in TRAIN:
        assert f"`{name}`" in text
