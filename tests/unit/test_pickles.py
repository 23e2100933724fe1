"""What training programs save: the weights are found, what is data beside them is let in, and code is not."""

import argparse
import logging
import os
import pathlib
import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sanacog.storage.checkpoints import open_checkpoint

WEIGHTS = {"blocks.0.weight": torch.arange(6.0).reshape(2, 3), "blocks.0.bias": torch.ones(2, dtype=torch.bfloat16)}
AVERAGED = {key: t + 1 for key, t in WEIGHTS.items()}


def same(loaded, weights=WEIGHTS):
    return loaded.keys() == weights.keys() and all(torch.equal(loaded[key], t) for key, t in weights.items())


def trained(**weights):
    """A checkpoint with all that NVlabs' trainer writes beside the weights."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return weights | {
        "optimizer": optimizer.state_dict(), "scheduler": schedule.state_dict(), "epoch": 3,
        "rng_state": {"torch": torch.get_rng_state(), "torch_cuda": [], "numpy": np.random.get_state(),
                      "python": random.getstate(), "generator": torch.Generator().get_state()}}


@pytest.mark.parametrize("extra", [
    {}, {"loss": np.float32(0.5), "losses": np.arange(3.0), "ints": np.int64(3), "words": np.array(["a", "b"])},
    {"args": argparse.Namespace(lr=1e-4, out=pathlib.Path("runs"), mean=np.float64(1))},
    {"out": pathlib.PurePosixPath("runs/1")}, {"odd": np.array([1, None], dtype=object)}, {"row": np.zeros(2, "f4,i8")}])
@pytest.mark.parametrize("zip", [True, False])
def test_a_training_checkpoint(tmp_path, extra, zip):
    path = tmp_path / "epoch_3_step_100.pth"
    torch.save(trained(state_dict=WEIGHTS) | extra, path, _use_new_zipfile_serialization=zip)
    assert same(open_checkpoint(path).load())


def test_arrays_of_numpy_1(tmp_path):
    """They name a module that NumPy 2 has moved."""
    path = tmp_path / "model.pth"
    torch.save({"state_dict": WEIGHTS, "loss": np.arange(3.0)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"numpy._core.multiarray" in content
    path.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert same(open_checkpoint(path).load())


@pytest.mark.parametrize("weights, expected", [
    ({"state_dict_ema": AVERAGED}, AVERAGED), ({"ema": AVERAGED}, AVERAGED), ({"model_ema": AVERAGED}, AVERAGED),
    ({"state_dict_ema": AVERAGED, "state_dict": WEIGHTS}, WEIGHTS), ({"ema": AVERAGED, "model": WEIGHTS}, WEIGHTS)])
def test_averaged_weights(tmp_path, caplog, weights, expected):
    """Trained ones come first, as NVlabs' code has it, and the log says that there were others."""
    path = tmp_path / "model.pth"
    torch.save(trained(**weights), path)
    with caplog.at_level(logging.INFO):
        assert same(open_checkpoint(path).load(), expected)
    left = [name for name in weights if weights[name] is not expected]
    assert bool(left) == ("are left" in caplog.text) and all(name in caplog.text for name in left)


@pytest.mark.parametrize("wrap", [
    lambda key: "module." + key, lambda key: "_orig_mod." + key, lambda key: "module._orig_mod." + key,
    lambda key: "_fsdp_wrapped_module." + key.replace("0.", "0._fsdp_wrapped_module._checkpoint_wrapped_module.")])
@pytest.mark.parametrize("save", [torch.save, save_file])
def test_names_that_a_trainer_has_wrapped(tmp_path, wrap, save):
    path = tmp_path / "model.pth"
    wrapped = OrderedDict((wrap(key), t) for key, t in WEIGHTS.items())
    save({"state_dict": wrapped} if save is torch.save else wrapped, path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.shapes == {"blocks.0.weight": (2, 3), "blocks.0.bias": (2,)} and checkpoint.dtypes.keys() == WEIGHTS.keys()
    assert same(checkpoint.load())


def test_wrapped_names_that_would_fall_together_stay(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.ones(1), "module.a.weight": torch.zeros(1)}, path)
    assert open_checkpoint(path).shapes.keys() == {"a.weight", "module.a.weight"}


class Calls:
    """A pickle that calls something when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zip", [True, False])
@pytest.mark.parametrize("function, named", [(os.mkdir, "mkdir"), (eval, "eval"), (getattr, "getattr"), (np.load, "load"),
                                             (np.ctypeslib.load_library, "load_library"), (random.Random, "Random")])
def test_what_is_neither_is_called_code(tmp_path, function, named, zip):
    path, crater = tmp_path / "bomb.pth", tmp_path / "crater"
    torch.save(trained(state_dict=WEIGHTS) | {"x": Calls(function, str(crater))}, path, _use_new_zipfile_serialization=zip)
    with pytest.raises(ValueError, match=f"bomb.pth: .*would run code .*{named}.*It was not run. .*save its state dict alone"):
        open_checkpoint(path)
    assert not crater.exists()


def test_what_others_let_in_stays_outside(tmp_path):
    """Torch's list is one for the whole process: other packs put things on it that do more than to keep data."""
    path, crater = tmp_path / "bomb.pth", tmp_path / "crater"
    torch.save({"state_dict": WEIGHTS, "x": Calls(np.memmap, str(crater), "u1", "w+", 0, 1)}, path)
    before = torch.serialization.get_safe_globals()
    with torch.serialization.safe_globals([np.memmap, np.ndarray]):
        with pytest.raises(ValueError, match="would run code .numpy.memmap"):
            open_checkpoint(path)
        assert {np.memmap, np.ndarray} <= set(torch.serialization.get_safe_globals())
    assert set(before) <= set(torch.serialization.get_safe_globals()) and not crater.exists()


def test_a_share_of_weights(tmp_path):
    path = tmp_path / "rank0.pth"
    torch.save({"state_dict": {"a.weight": Calls(_Sharded)}}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(f"c{__name__}\n_Sharded\n".encode(),
                                               b"ctorch.distributed._shard.sharded_tensor.api\nShardedTensor\n"))
    with pytest.raises(ValueError, match="rank0.pth: .*spread over several GPUs.*Gather them"):
        open_checkpoint(path)


def _Sharded():
    pass
