"""Compiled blocks train to what uncompiled ones do; FSDP2 by the settings."""

import json

import pytest
import safetensors.torch
import torch

from sanacog.training import models, recipe, session

from .runs import clips, loaded, sana_video, start
from .test_distributed import FULL

KINDS = {"lora": (), "checkpointing": ("train.gradient_checkpointing=true",), "full": FULL}


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_is_the_same(tmp_path, kind):
    steps = {}
    for backend in ("none", "eager"):
        run = loaded(tmp_path, f"train.compile={backend}", "model.dtype=fp32", *KINDS[kind], name=backend)
        session.train(run, lambda text: None)
        lines = (session.folder_of(run.config) / "history.jsonl").read_text().splitlines()
        steps[backend] = [json.loads(line)[name] for line in lines for name in ("loss", "norm")]
    # The padding that is kept only rounds otherwise, but of a gradient near zero Adam takes the sign.
    assert steps["eager"][:2] == pytest.approx(steps["none"][:2], rel=1e-5)
    assert steps["eager"] == pytest.approx(steps["none"], rel=1e-3)


def test_computed_again_with_the_same_dropout(tmp_path):
    """Of compiled blocks too."""
    norms = {}
    for again in (False, True):
        run = loaded(tmp_path, "train.compile=eager", "lora.dropout=0.2", "model.dtype=fp32", f"train.gradient_checkpointing={again}",
                     name=f"again-{again}")
        session.train(run, lambda text: None)
        lines = (session.folder_of(run.config) / "history.jsonl").read_text().splitlines()
        norms[again] = [json.loads(line)["norm"] for line in lines]
    assert norms[True] == pytest.approx(norms[False], rel=1e-4)


def blocks(config):
    return recipe.build(config, models.Models(config.model)).blocks


@pytest.mark.parametrize("second", (False, True))
def test_each_way_to_call_a_block_is_compiled(tmp_path, monkeypatch, second):
    """SANA-Video 2.0 calls the halves of its blocks."""
    counted = []

    def count(graph, inputs):
        counted.append(graph)
        return graph.forward
    monkeypatch.setattr(torch, "compile", lambda call, backend, real=torch.compile: real(call, backend=count))
    torch._dynamo.reset()
    network = sana_video(tmp_path / "video.safetensors", second)
    run = loaded(tmp_path, "train.compile=eager", "train.steps=1", "model.variant=tiny_sana_video", "data.fps=8",
                 "data.buckets=[[9, 64, 64]]", f"model.transformer={network}", "lora.targets=[attention]",
                 f"data.path={clips(tmp_path / 'clips', 2)}")
    names = {"attend", "feed"} if second else {"forward"}
    assert all(names <= block.__dict__.keys() for block in blocks(run.config))
    session.train(run, lambda text: None)
    assert counted


@pytest.mark.parametrize("empty_mask", ("own", "caption"))
def test_compiled_blocks_meet_one_length_of_text(tmp_path, monkeypatch, empty_mask):
    """Captions differ in length; of inductor's second length the backward has wrong strides."""
    lengths = set()

    def watched(call, backend):
        def run(x, context, *others):
            lengths.add(context.shape[1])
            return call(x, context, *others)
        return run
    monkeypatch.setattr(torch, "compile", watched)
    session.train(loaded(tmp_path, "train.compile=inductor", f"objective.empty_mask={empty_mask}"), lambda text: None)
    assert lengths == {300}


def test_inductor_and_others_by_name(tmp_path):
    from sanacog.training.config_reference import SCHEMA

    assert '"inductor"' in SCHEMA.read_text("utf-8")
    with pytest.raises(ValueError, match="train.compile.*none, inductor, aot_eager or eager|train.compile.*inductor"):
        loaded(tmp_path, "train.compile=fast")


def test_fsdp_by_the_settings(tmp_path):
    """As by `accelerate launch --use_fsdp`; blocks compiled, too."""
    same = ("train.steps=2", "model.dtype=fp32", "train.compile=eager")
    expected = safetensors.torch.load_file(session.train(loaded(tmp_path, *same, "train.accumulation=2", name="alone"),
                                                         lambda text: None))
    process = start(tmp_path, *same, "parallel.fsdp=true", name="two", processes=2)
    try:
        told, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, told[-3000:]
    assert "weights sharded over 2 processes" in told
    got = safetensors.torch.load_file(tmp_path / "out" / "two" / "two.safetensors")
    change = sum(t.float().norm() ** 2 for t in expected.values()) ** 0.5
    for key, t in expected.items():
        assert (got[key] - t).norm() <= 5e-3 * max(t.norm(), change / 100), key  # as in test_distributed.py


def test_fsdp_does_not_go_with_everything(tmp_path):
    with pytest.raises(ValueError, match="train.optimizer: found came; .*allowed: adamw"):
        loaded(tmp_path, "parallel.fsdp=true", "train.optimizer=came")
