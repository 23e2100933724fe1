"""Two processes (gloo) come to the weights of one with twice the accumulation, whether they share batches or weights too."""

import json

import pytest
import safetensors.torch

from sanacog.training import checkpoints, session

from .runs import loaded, start

ONE = ("train.accumulation=2", "train.steps=3", "train.ema=0.5", "data.batch_size=2")
TWO = ("train.accumulation=1", *ONE[1:])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(place):
    """{kind: what one process gives}. Seven pictures in two shapes: batches of 2, 2, 1 and 2, so that a step has unequal ones."""
    return {kind: safetensors.torch.load_file(session.train(loaded(place, *ONE, *more, name=f"alone-{kind}"), lambda text: None))
            for kind, more in KINDS.items()}


KINDS = {"lora": (), "full": ("train.kind=full", "lora=null", "train.lr=1e-4")}


@pytest.mark.parametrize("sharded", (False, True), ids=("DDP", "FSDP2"))
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one(place, alone, kind, sharded):
    name = f"{kind}-{'sharded' if sharded else 'shared'}"
    environment = {"ACCELERATE_USE_FSDP": "true"} if sharded else {}
    process = start(place, *TWO, *KINDS[kind], name=name, processes=2, environment=environment)
    try:
        told, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, told[-3000:]
    assert ("sharded over 2 processes" in told) == sharded, told
    folder = place / "out" / name
    got = safetensors.torch.load_file(folder / f"{name}.safetensors")
    assert got.keys() == alone[kind].keys()
    change = sum(t.float().norm() ** 2 for t in alone[kind].values()) ** 0.5
    for key, expected in alone[kind].items():
        assert got[key].shape == expected.shape
        assert (got[key] - expected).norm() <= 1e-5 * max(expected.norm(), change / 100), key
    found, state = checkpoints.latest(folder / "checkpoints")
    assert found.step == 3 and not any("DTensor" in type(t).__name__ for t in state["weights"].values())
    steps = [[json.loads(line) for line in (place / "out" / run / "history.jsonl").read_text().splitlines()]
             for run in (name, f"alone-{kind}")]
    for key in ("loss", "norm"):  # the norm: AdamW would hide gradients of another scale
        assert [step[key] for step in steps[0]] == pytest.approx([step[key] for step in steps[1]], rel=1e-4), key
