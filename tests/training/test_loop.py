"""The loop on a network of one matrix, where what a step must do can be computed by hand."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sanacog.training import checkpoints, optimizers
from sanacog.training.average import Average
from sanacog.training.loop import NotFinite, Stopped, Task, fit
from sanacog.training.parallel import Processes

ROWS = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()


class Plan:
    """Batches of 3, 3, 1 rows, again and again."""

    def batch(self, n):
        return [[0, 1, 2], [3, 4, 5], [6]][n % 3]


class Rows(torch.utils.data.Dataset):
    plan = Plan()

    def __init__(self, change=lambda n, rows: rows):
        self.change = change

    def __getitem__(self, n):
        rows = self.plan.batch(n)
        return {"names": [f"row{i}" for i in rows], "x": self.change(n, ROWS[rows])}


class Square(nn.Module):
    """Loss of a row: the square of its product with w, and a bit of noise from the generator."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    def forward(self, batch, generator, step=None):
        return (batch["x"] @ self.w + 0.1 * torch.randn(len(batch["x"]), generator=generator)).square()


def settings(steps=4, accumulation=1, clip=None, every=100, keep=3, minutes=None, validate=None):
    return SimpleNamespace(
        train=SimpleNamespace(steps=steps, accumulation=accumulation, clip=clip, seed=0),
        data=SimpleNamespace(workers=0), validation=SimpleNamespace(every=validate),
        output=SimpleNamespace(save_every=every, save_minutes=minutes, keep=keep))


def run(folder, config, data=None, loss=None, sgd=True, rate=lambda step: 1.0, average=None, **more):
    loss = loss or Square()
    named = list(loss.named_parameters())
    optimizer = torch.optim.SGD([p for _, p in named], lr=0.05) if sgd else optimizers.make("adamw", named, 0.05)[0]
    processes = Processes(accumulation=config.train.accumulation)
    task = Task(processes.prepare(loss, []), named, [optimizer], rate, average and Average(named, average), data or Rows(), **more)
    fit(task, config, processes, folder, lambda text: None)
    return loss, task


def gradient(w, n_rows, noise):
    """Of the mean over all rows."""
    x = torch.cat(n_rows)
    product = x @ w + torch.cat(noise)
    return 2 * (product[:, None] * x).mean(0)


def test_a_step_averages_over_its_rows_and_not_over_its_batches(tmp_path):
    from sanacog.training.samples import number

    loss, _ = run(tmp_path, settings(steps=1, accumulation=3))
    rows = [ROWS[Plan().batch(n)] for n in range(3)]
    noise = [0.1 * torch.randn(len(x), generator=torch.Generator().manual_seed(number("noise", 0, n))) for n, x in enumerate(rows)]
    expected = torch.ones(3) - 0.05 * gradient(torch.ones(3), rows, noise)
    assert torch.allclose(loss.w, expected, atol=1e-6)
    entry = json.loads((tmp_path / "history.jsonl").read_text())
    product = torch.cat(rows) @ torch.ones(3) + torch.cat(noise)
    assert entry["loss"] == pytest.approx(product.square().mean().item(), rel=1e-5)


def test_gradient_is_clipped_to_its_norm(tmp_path):
    free, _ = run(tmp_path / "free", settings(steps=1))
    clipped, _ = run(tmp_path / "clipped", settings(steps=1, clip=0.5))
    change = free.w.detach() - 1
    assert (clipped.w.detach() - 1).norm() == pytest.approx(0.05 * 0.5, rel=1e-3) and change.norm() > 0.05
    assert torch.allclose((clipped.w.detach() - 1) / (clipped.w.detach() - 1).norm(), change / change.norm(), atol=1e-4)
    norms = [json.loads((tmp_path / name / "history.jsonl").read_text())["norm"] for name in ("free", "clipped")]
    assert norms[0] == pytest.approx(norms[1]) and norms[0] == pytest.approx(change.norm().item() / 0.05, rel=1e-4)


def test_learning_rate_follows_the_schedule(tmp_path):
    run(tmp_path, settings(steps=4), rate=lambda step: (step + 1) / 4)
    found = [json.loads(line)["lr"] for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert found == pytest.approx([0.0125, 0.025, 0.0375, 0.05])


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
def test_loss_that_is_no_number_names_its_rows(tmp_path, value):
    def change(n, rows):
        rows = rows.clone()
        if n == 1:
            rows[1] = value
        return rows
    loss = Square()
    with pytest.raises(NotFinite, match="step 2.*with row4[.] "):
        run(tmp_path, settings(every=1), Rows(change), loss)
    assert checkpoints.everyone(tmp_path / "checkpoints")[-1].step == 1 and loss.w.isfinite().all()


def test_gradient_that_is_no_number_stops_before_the_step(tmp_path):
    class Steep(Square):
        def forward(self, batch, generator, step=None):
            return (self.w - self.w.detach()).abs().sqrt().sum() + super().forward(batch, generator)
    loss = Steep()
    with pytest.raises(NotFinite, match="the gradient's norm is .*row0, row1, row2"):
        run(tmp_path, settings(), loss=loss)
    assert torch.equal(loss.w, torch.ones(3))


@pytest.mark.parametrize("signal_number", (signal.SIGINT, signal.SIGTERM))
def test_asked_to_stop_it_saves_and_goes_on_to_the_same(tmp_path, signal_number):
    whole, _ = run(tmp_path / "whole", settings(steps=5), sgd=False, average=0.9)

    def change(n, rows):
        if n == 2:
            os.kill(os.getpid(), signal_number)
        return rows
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", settings(steps=5), Rows(change), sgd=False, average=0.9)
    assert [c.step for c in checkpoints.everyone(tmp_path / "stopped" / "checkpoints")] == [3]
    again, task = run(tmp_path / "stopped", settings(steps=5), sgd=False, average=0.9)
    assert torch.equal(again.w, whole.w)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_checkpoints_by_steps_minutes_and_lowest_loss(tmp_path):
    losses = {0: 3.0, 2: 1.0, 4: 2.0, 6: 1.5}
    run(tmp_path, settings(steps=6, every=3, keep=1, validate=2), check=lambda step: {"loss": losses[step]})
    assert [c.step for c in checkpoints.everyone(tmp_path / "checkpoints")] == [2, 6]
    run(tmp_path / "minutes", settings(steps=3, every=None, minutes=1e-9, keep=9))
    assert [c.step for c in checkpoints.everyone(tmp_path / "minutes" / "checkpoints")] == [1, 2, 3]


def test_validation_sees_the_average_and_training_goes_on_with_the_weights(tmp_path):
    loss, seen = Square(), []
    run(tmp_path, settings(steps=3, validate=1), loss=loss, average=0.9,
        check=lambda step: seen.append(loss.w.detach().clone()) or {"loss": 1.0})
    plain, _ = run(tmp_path / "plain", settings(steps=3))
    assert torch.equal(loss.w, plain.w) and not torch.equal(seen[-1], loss.w)


def test_out_of_memory_says_what_to_turn_down(tmp_path):
    class Greedy(Square):
        def forward(self, batch, generator, step=None):
            raise torch.OutOfMemoryError("no 3 TiB")
    loss = Greedy()
    processes, named = Processes(), list(loss.named_parameters())
    task = Task(loss, named, [torch.optim.SGD([loss.w], lr=1.0)], lambda step: 1.0, None, Rows())
    with pytest.raises(torch.OutOfMemoryError, match="Turn down the batch.*\n.*3 TiB"):
        fit(task, settings(), processes, tmp_path, lambda text: None, lambda: "Turn down the batch.")
