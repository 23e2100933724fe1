"""A run that was stopped, killed, or given other workers comes to the same weights to the bit."""

import signal
import time

import pytest
import safetensors.torch
import torch

from sanacog.training import checkpoints, session

from .runs import clips, loaded, sana_video, start

EMA = "train.ema=0.5"


def tensors(folder):
    return safetensors.torch.load_file(folder)


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(place):
    """What four steps without a break give."""
    return tensors(session.train(loaded(place, EMA, "lora.dropout=0.2", name="whole"), lambda text: None))


def stop_after(monkeypatch, step):
    """Let the run be asked to stop while it is in that step."""
    from sanacog.training import loop

    real = loop._Run.one

    def one(self, batches, stop, late):
        if self.step + 1 == step:
            stop.set()
        return real(self, batches, stop, late)
    monkeypatch.setattr(loop._Run, "one", one)


@pytest.mark.parametrize("step", (1, 2, 3))
def test_stopped_at_any_step_and_gone_on(place, whole, monkeypatch, step):
    from sanacog.training.loop import Stopped

    run = loaded(place, EMA, "lora.dropout=0.2", name=f"stopped{step}")
    with monkeypatch.context() as patched:
        stop_after(patched, step)
        with pytest.raises(Stopped):
            session.train(run, lambda text: None)
    folder = session.folder_of(run.config)
    assert [c.step for c in checkpoints.everyone(folder / "checkpoints")] == [step]
    assert same(tensors(session.train(run, lambda text: None)), whole)
    steps = [line.split('"step": ')[1].split(",")[0] for line in (folder / "history.jsonl").read_text().splitlines()]
    assert steps == ["1", "2", "3", "4"]


def test_sana_video_stopped_and_gone_on(place, monkeypatch):
    """Its rows draw whether their first frame is given, too."""
    from sanacog.training.loop import Stopped

    more = ("model.variant=tiny_sana_video", f"model.transformer={sana_video(place / 'sana_video.safetensors')}", "data.fps=8",
            f"data.path={clips(place / 'clips')}", "data.buckets=[[9, 64, 64]]", "model.dtype=bf16", EMA)
    expected = tensors(session.train(loaded(place, *more, name="video-whole"), lambda text: None))
    run = loaded(place, *more, name="video-stopped")
    with monkeypatch.context() as patched:
        stop_after(patched, 2)
        with pytest.raises(Stopped):
            session.train(run, lambda text: None)
    assert same(tensors(session.train(run, lambda text: None)), expected)
    assert any(t.abs().sum() > 0 for name, t in expected.items() if "lora_B" in name)


def test_other_workers_change_nothing(place, whole):
    run = loaded(place, EMA, "lora.dropout=0.2", "data.workers=2", name="workers")
    assert same(tensors(session.train(run, lambda text: None)), whole)


def test_killed_and_gone_on(place, whole):
    more = (EMA, "lora.dropout=0.2", "output.save_every=1")
    process = start(place, *more, "train.steps=4", name="killed")
    folder = place / "out" / "killed"
    try:
        end = time.monotonic() + 120
        while not checkpoints.everyone(folder / "checkpoints") and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    found = checkpoints.everyone(folder / "checkpoints")
    assert found, "it was killed before the first checkpoint"
    result = session.train(loaded(place, *more, name="killed"), lambda text: None)
    assert same(tensors(result), whole)


def test_other_seed_gives_other_weights(place, whole):
    run = loaded(place, EMA, "lora.dropout=0.2", "train.seed=1", name="seed")
    assert not same(tensors(session.train(run, lambda text: None)), whole)


def test_damaged_checkpoint_is_passed_over(tmp_path):
    told = []
    for step in (1, 2):
        checkpoints.save(tmp_path, {"weights": {"a": torch.ones(step)}}, {"step": step})
    (tmp_path / "step-000002" / "state.pt").write_bytes(b"broken off")
    found, state = checkpoints.latest(tmp_path, told.append)
    assert found.step == 1 and len(state["weights"]["a"]) == 1
    assert "step-000002" in told[0]


def test_half_written_checkpoint_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(tmp_path, {}, {"step": 3})
    assert list(tmp_path.iterdir()) == [] and checkpoints.latest(tmp_path) is None


def test_newest_and_best_are_kept(tmp_path):
    for step, loss in enumerate((0.9, 0.5, 0.7, None, 0.8), 1):
        checkpoints.save(tmp_path, {}, {"step": step, "loss": loss})
        checkpoints.prune(tmp_path, 2)
    assert [c.step for c in checkpoints.everyone(tmp_path)] == [2, 4, 5]


def test_other_weights_are_refused(place, whole):
    with pytest.raises(ValueError, match="other weights"):
        session.train(loaded(place, EMA, "lora.targets=[attention]", name="whole"), lambda text: None)
