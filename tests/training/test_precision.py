"""fp16 with a scaled loss: steps that overflow change nothing, are counted, and a run that goes on has the same scale."""

import json

import pytest
import torch
from torch import nn

from sanacog.training import checkpoints, loop, session
from sanacog.training.loop import NotFinite, Task, fit
from sanacog.training.parallel import Processes

from .runs import loaded
from .test_loop import Rows, settings


class Steep(nn.Module):
    """Its gradient by the scaled loss is w's row times the slope, which is infinite in the steps of `over`."""

    def __init__(self, over=()):
        super().__init__()
        self.w, self.over = nn.Parameter(torch.ones(3)), over

    def forward(self, batch, generator, step=None):
        out = (batch["x"] @ self.w).float().square()
        return out / 100 + ((self.w - self.w.detach()).abs().sqrt().sum() if step in self.over else 0)


def run(folder, steps, over=(), dtype="fp16", growth=None):
    loss, processes = Steep(over), Processes(dtype)
    if growth:
        processes.scaler.set_growth_interval(growth)
    optimizer = torch.optim.AdamW([loss.w], lr=0.05)
    task = Task(processes.prepare(loss, []), [("w", loss.w)], [optimizer], lambda step: 1.0, None, Rows())
    fit(task, settings(steps=steps, every=1), processes, folder, lambda text: None)
    return loss, processes


def lines(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.fixture
def first_scale(monkeypatch):
    """Let the loss be scaled by this at first."""
    real = torch.amp.GradScaler.__init__
    return lambda scale: monkeypatch.setattr(
        torch.amp.GradScaler, "__init__", lambda self, device: real(self, device, scale))


def test_the_scale_changes_no_step(tmp_path, first_scale):
    """A power of two: the gradients are those of an unscaled loss to the bit."""
    scaled, processes = run(tmp_path / "a", 4)
    assert processes.scaler.get_scale() == 2.0**16
    first_scale(2.0**10)
    assert torch.equal(scaled.w, run(tmp_path / "b", 4)[0].w)
    assert not torch.equal(scaled.w, run(tmp_path / "c", 4, dtype="fp32")[0].w)  # so it was in fp16


def test_steps_that_overflow_are_skipped_and_counted(tmp_path):
    one, _ = run(tmp_path / "one", 1)
    loss, processes = run(tmp_path / "run", 3, over=(1, 2))
    assert torch.equal(loss.w, one.w)
    assert processes.scaler.get_scale() == 2.0**14
    assert [line.get("skipped", False) for line in lines(tmp_path / "run")] == [False, True, True]
    assert ["norm" in line for line in lines(tmp_path / "run")] == [True, False, False]


def test_too_many_in_a_row_stop_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "MOST_SKIPPED", 3)
    run(tmp_path / "apart", 6, over=(0, 1, 3, 4))
    with pytest.raises(NotFinite, match="step 5: .*norm is .*, 3 steps one after the other, with row.*bf16 instead of fp16"):
        run(tmp_path / "run", 9, over=(2, 3, 4))
    assert checkpoints.everyone(tmp_path / "run" / "checkpoints")[-1].step == 4
    with pytest.raises(NotFinite, match="step 5"):  # goes on at step 4 with two of three behind it
        run(tmp_path / "run", 9, over=(4,))


def test_without_fp16_the_first_one_stops_it(tmp_path):
    with pytest.raises(NotFinite, match="step 2: the gradient's norm is"):
        run(tmp_path, 3, over=(1,), dtype="bf16")


def test_going_on_keeps_the_scale(tmp_path):
    whole, processes = run(tmp_path / "whole", 6, over=(1, 2), growth=3)
    assert processes.scaler.get_scale() == 2.0**15  # halved twice, and grown once after three sound steps
    run(tmp_path / "run", 4, over=(1, 2), growth=3)
    state = checkpoints.latest(tmp_path / "run" / "checkpoints")[1]
    assert state["scaler"]["scale"] == 2.0**14 and state["scaler"]["_growth_tracker"] == 1 and state["skipped"] == [2, 0]
    again, processes = run(tmp_path / "run", 6, over=(1, 2), growth=3)
    assert torch.equal(again.w, whole.w) and processes.scaler.get_scale() == 2.0**15


@pytest.mark.parametrize("kind", ("lora", "full"))
def test_a_model_trains_in_fp16_near_to_fp32(tmp_path, kind, first_scale):
    first_scale(2.0**8)  # at which no step of these overflows
    more = () if kind == "lora" else ("train.kind=full", "lora=null", "train.lr=1e-4")
    losses = {}
    for dtype in ("fp16", "fp32"):
        session.train(loaded(tmp_path, f"model.dtype={dtype}", *more, name=dtype), lambda text: None)
        losses[dtype] = [line["loss"] for line in lines(tmp_path / "out" / dtype)]
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=2e-2) and losses["fp16"] != losses["fp32"]
