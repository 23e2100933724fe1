"""DeepSpeed: its file is read, filled with the run's settings or refused; with the package, two processes come to the weights of
one."""

import importlib.util
import json
import os

import pytest
import safetensors.torch
import torch

from sanacog.training import session, zero
from sanacog.training.parallel import Processes

from .runs import loaded, start

STAGE = {"stage": 2}


@pytest.fixture
def written(tmp_path):
    def write(**settings):
        path = tmp_path / "ds.json"
        path.write_text(json.dumps({"zero_optimization": STAGE} | settings))
        return path
    return write


def config(tmp_path, *more):
    return loaded(tmp_path, "data.batch_size=3", "train.accumulation=2", "train.clip=0.5", *more).config


def test_auto_is_what_the_run_says(tmp_path, written):
    path = written(train_batch_size="auto", train_micro_batch_size_per_gpu="auto", gradient_accumulation_steps=2,
                   gradient_clipping="auto", bf16={"enabled": "auto"}, communication_data_type="fp32",
                   zero_optimization={"stage": 1, "reduce_bucket_size": "auto", "overlap_comm": True})
    expected = {"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 2, "gradient_clipping": 0.5,
                "communication_data_type": "fp32", "zero_optimization": {"stage": 1, "overlap_comm": True},
                "zero_allow_untested_optimizer": True}
    assert zero.settings(path, config(tmp_path, "model.dtype=fp32"), 4) == expected
    autocast = zero.settings(path, config(tmp_path, "model.dtype=bf16"), 4)["torch_autocast"]
    assert autocast == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}


@pytest.mark.parametrize("wrong, told", [
    ({"gradient_clipping": 1.0}, "gradient_clipping: found 1.0, and train.clip is 0.5"),
    ({"gradient_accumulation_steps": 8}, "gradient_accumulation_steps: found 8, and train.accumulation is 2"),
    ({"train_micro_batch_size_per_gpu": 1}, "train_micro_batch_size_per_gpu: found 1, and data.batch_size is 3"),
    ({"train_batch_size": 12}, "train_batch_size: found 12, and batches, accumulation and 4 processes give 24"),
    ({"optimizer": {"type": "AdamW"}}, "optimizer: a run has train.optimizer"),
    ({"scheduler": {"type": "WarmupLR"}}, "scheduler: a run has train.schedule"),
    ({"fp16": {"enabled": True}}, "fp16.enabled: found True, and model.dtype is bf16"),
    ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage: found 3; allowed: 1 or 2. .*parallel.fsdp=true"),
    ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, "offload_optimizer.device: found cpu"),
])
def test_what_a_run_would_not_do_is_refused_by_file_and_field(tmp_path, written, wrong, told):
    with pytest.raises(ValueError, match=f"ds.json: .*{told}"):
        zero.settings(written(**wrong), config(tmp_path, "model.dtype=bf16"), 4)


def test_all_mistakes_at_once_and_files_that_are_none(tmp_path, written):
    with pytest.raises(ValueError, match="(?s)gradient_clipping.*scheduler.*stage"):
        zero.settings(written(gradient_clipping=3, scheduler={}, zero_optimization={}), config(tmp_path), 2)
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        zero.settings(tmp_path / "nowhere.json", config(tmp_path), 2)
    for text in ("{", "[]"):
        (tmp_path / "ds.json").write_text(text)
        with pytest.raises(ValueError, match="ds.json: .*JSON"):
            zero.settings(tmp_path / "ds.json", config(tmp_path), 2)


@pytest.fixture
def launch(monkeypatch):
    """The environment that `accelerate launch` makes of its arguments."""
    from accelerate.commands.launch import launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    def run(*arguments):
        options = launch_command_parser().parse_args(
            ["--num_machines", "1", "--num_processes", "2", "--mixed_precision", "no", "--use_deepspeed", *arguments,
             "run.py"])
        options.deepspeed_fields_from_accelerate_config = ""
        for name, value in prepare_deepspeed_cmd_env(options)[1].items():
            if name.startswith("ACCELERATE_") and os.environ.get(name) != value:
                monkeypatch.setenv(name, value)
    return run


def test_accelerate_launch_names_the_file(launch, monkeypatch):
    launch("--deepspeed_config_file", "mine.json")
    seen = []
    monkeypatch.setattr(zero, "launched", lambda path, real=zero.launched: seen.append(real(path)) or seen[0])
    assert Processes().deepspeed is None and seen == ["mine.json"]  # one process has nothing to share
    assert "ACCELERATE_USE_DEEPSPEED" not in os.environ


def test_accelerate_launch_without_a_file_says_what_to_add(launch):
    launch()
    with pytest.raises(ValueError, match="--deepspeed_config_file"):
        Processes()


def test_both_ways_to_share_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="take one"):
        Processes(deepspeed="mine.json")


@pytest.mark.parametrize("setting, key", [
    ("train.optimizer=muon", "train.optimizer"), ("lora.dora=true", "lora.dora"), ("model.dtype=fp16", "model.dtype"),
    ("parallel.fsdp=true", "parallel.deepspeed")])
def test_settings_that_it_does_not_go_with(tmp_path, written, setting, key):
    with pytest.raises(ValueError, match=f"{key}.*allowed|{key}.*take one"):
        loaded(tmp_path, f"parallel.deepspeed={written()}", setting)


def test_the_package_that_is_missing_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ValueError, match="pip install deepspeed"):
        zero.package()


def test_one_process_says_that_nothing_is_shared(tmp_path, written):
    told = []
    session.train(loaded(tmp_path, "train.steps=1", f"parallel.deepspeed={written()}"), told.append)
    assert any("one process, and nothing to share" in line for line in told)


needs_package = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")


@needs_package
@pytest.mark.parametrize("stage", (1, 2))
def test_two_processes_are_one_and_go_on_where_they_stopped(tmp_path, written, stage):
    same = ("train.ema=0.5", "data.batch_size=2", "model.dtype=fp32", "train.weight_decay=0.01", "train.clip=0.5",
            "train.lr=1e-3", "train.schedule=constant", "output.save_every=2")
    expected = safetensors.torch.load_file(session.train(loaded(tmp_path, *same, "train.accumulation=4", name="alone"),
                                                         lambda text: None))
    path = written(gradient_accumulation_steps="auto", zero_optimization={"stage": stage})
    run = (*same, "train.accumulation=2", f"parallel.deepspeed={path}")
    for steps in (2, 4):
        process = start(tmp_path, *run, f"train.steps={steps}", name="two", processes=2)
        try:
            told, _ = process.communicate(timeout=240)
        finally:
            process.kill()
        assert process.returncode == 0, told[-3000:]
        assert f"DeepSpeed's ZeRO {stage} shared over 2 processes" in told
    assert "going on from step-000002" in told
    got = safetensors.torch.load_file(tmp_path / "out" / "two" / "two.safetensors")
    assert got.keys() == expected.keys()
    # Over all of them: AdamW makes much of the last digits of a gradient near 0.
    away, size = (sum((f(key).float() ** 2).sum() for key in expected) ** 0.5 for f in (
        lambda key: got[key] - expected[key], lambda key: expected[key] if "lora_B" in key else torch.zeros(())))
    assert away <= 1e-3 * size, (away, size)
    norms = [[json.loads(line)["norm"] for line in (tmp_path / "out" / name / "history.jsonl").read_text().splitlines()]
             for name in ("two", "alone")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
