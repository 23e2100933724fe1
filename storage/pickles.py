"""Torch's pickles of weights, read without running anything that stands in them.

Beside the weights training programs save optimizer state, random states and arguments. What of these is data and no code
is let in by name, as a thing that keeps nothing.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

# Under these names training programs put the weights, beside optimizer state, step counts and critics. First found, first taken:
# trained weights before their moving average (EMA), as NVlabs' own code does unless told otherwise.
WRAPPERS = ("state_dict", "generator", "module", "model", "state_dict_ema", "generator_ema", "ema_state_dict", "model_ema", "ema_model", "ema")
# NumPy's arrays and scalars (random states, losses), command lines, paths, and Lightning's notes on its best files.
_DATA = (
    *(f"{core}.multiarray.{name}" for core in ("numpy._core", "numpy.core") for name in ("_reconstruct", "scalar")),
    "numpy.ndarray", "numpy.dtype", "_codecs.encode", "argparse.Namespace",
    *(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows", "PurePosix",
                                                                                     "PureWindows")),
    *(f"{package}.callbacks.model_checkpoint.ModelCheckpoint" for package in ("pytorch_lightning", "lightning.pytorch")),
)


class _Nothing:
    """Is made of anything, and keeps none of it."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def _stand_in(path):
    module, _, name = path.rpartition(".")
    return type(name, (_Nothing,), {"__module__": module})


_STAND_INS = [_stand_in(path) for path in _DATA]


def read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """{key: tensor} of the weights in a torch pickle, on the CPU. Those of zip archives stay on disk until used.

    Raises ValueError for a damaged file, for one that asks for code, and for one without a dictionary of tensors.
    """
    with _data_alone():
        content = _load(path)
    tensors, taken, left = _unwrap(content)
    if not tensors:
        found = f"a dictionary of {', '.join(map(_word, list(content)[:4]))}" if isinstance(content, Mapping) else (
            f"a {type(content).__name__}")
        raise ValueError(f"{path}: no tensors by name in this file (found {found}), expected a state dict. Choose the "
                         f"file with the model's weights.")
    if left:
        logging.info("%s: the weights under %s are taken, those under %s are left", path.name, taken, ", ".join(left))
    return tensors


@contextmanager
def _data_alone():
    """Let torch's weights_only unpickler take _DATA, and nothing that other programs in this process have let in: its list is
    one for all, and on it the real thing of a name could come before its stand-in."""
    if not hasattr(torch.serialization, "safe_globals"):  # before torch 2.5
        yield
        return
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            yield
    finally:
        torch.serialization.add_safe_globals(others)


def _load(path):
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # written by torch before 1.6
    except pickle.UnpicklingError as error:
        if "torch.distributed" in str(error):
            raise ValueError(f"{path}: this pickle holds a share of weights that were spread over several GPUs, expected whole "
                             "ones. Gather them with the program that wrote it (FSDP: a full state dict), or take the file "
                             "that it saved for inference.") from None
        if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(f"{path}: loading this pickle would run code ({wanted[1]}), expected tensors alone. It was "
                             f"not run. Use a safetensors version of the file, or save its state dict alone where the "
                             f"program that wrote it runs.") from None
        raise ValueError(f"{path}: this pickle is damaged or holds other things than tensors, expected a torch file of "
                         f"tensors. It was not run. Get it again, or use a safetensors version of the file.") from None
    except Exception as error:  # there is no end to what bytes that were changed make torch raise
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ValueError(f"{path}: this torch file cannot be read ({reason}). It is cut short or damaged: get it "
                         f"again.") from None


def _unwrap(content) -> tuple[dict[str, torch.Tensor], str, list[str]]:
    """(the tensors by name inside what a training program saved, under which of WRAPPERS, the others that were there)."""
    taken, left = "", []
    for _ in range(len(WRAPPERS) + 1):  # bounded: a dictionary may hold itself
        if not isinstance(content, Mapping):
            break
        tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}
        inner = [name for name in WRAPPERS if isinstance(content.get(name), Mapping)]
        # Weights have dotted names; a lone tensor beside a wrapped state dict is a step count or the like.
        if not inner or any("." in key for key in tensors):
            return tensors, taken, left
        content, taken, left = content[inner[0]], inner[0], left + inner[1:]
    return {}, taken, left


def _word(key):
    return key if isinstance(key, str) else repr(key)[:40]
