"""A second device on a machine without one: "cpu:1".

To PyTorch its tensors are the CPU's. So what runs there is watched: what is made there or moved there with .to is on it
and says so when asked for its device; an operation on tensors of both is an error, as it is between two GPUs.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

FIRST, SECOND = torch.device("cpu"), torch.device("cpu", 1)


class Watch(TorchFunctionMode):
    """Over one call on the second device. own: address of memory there -> a tensor in it, kept so that no other gets it."""

    def __init__(self, own):
        super().__init__()
        self.own = own

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function == torch.Tensor.device.__get__:
            return self.device_of(args[0])
        if function == torch.Tensor.to:
            return self.moved(*args, **kwargs)
        given = tensors((args, kwargs))
        devices = {self.device_of(tensor) for tensor in given}
        if len(devices) > 1:
            raise RuntimeError(f"{function} was given tensors of two devices: "
                               + ", ".join(f"{tuple(tensor.shape)} of {self.device_of(tensor)}" for tensor in given))
        out = function(*args, **kwargs)
        made = torch.device(kwargs.get("device") or SECOND)  # of what no tensor went into
        return self.kept(out) if SECOND in (devices or {made}) else out

    def moved(self, tensor, *args, **kwargs):
        if args and isinstance(args[0], torch.Tensor):
            args = (self.device_of(args[0]), args[0].dtype, *args[1:])
        devices = [arg for arg in (*args, kwargs.get("device")) if isinstance(arg, torch.device)] or [self.device_of(tensor)]
        out = tensor.to(*args, **kwargs)
        return self.kept(out) if devices[0] == SECOND else out

    def device_of(self, tensor):
        return SECOND if address(tensor) in self.own else FIRST

    def kept(self, out):
        self.own.update(by_address(tensors(out)))
        return out


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor) and leaf.numel()]


def address(tensor):
    return tensor.untyped_storage().data_ptr()


def by_address(tensors):
    return {address(tensor): tensor for tensor in tensors}


def split(comfy, monkeypatch, model, more=()):
    """(MODEL whose conditions the host spreads over both devices, Counter of the conditions that each got).

    more: functions that give further modules with weights on the second device. Skips on hosts before 0.23.
    """
    multigpu = pytest.importorskip("comfy.multigpu", reason="this host has no MultiGPU CFG Split")
    monkeypatch.setattr(comfy.model_management, "get_all_torch_devices", lambda exclude_current=False: [FIRST, SECOND])
    conditions, own, submit = Counter(), {}, multigpu.MultiGPUThreadPool.submit
    patched = multigpu.create_multigpu_deepclones(model, 2, reuse_loaded=True)
    [second] = patched.get_additional_models_with_key("multigpu")
    assert second.model is not model.model and second.load_device == SECOND

    def watched(pool, device, function, *args):
        conditions[device] += sum(len(batch) for _, batch in args[1])

        def call(*args):
            for module in (second.model, *(get() for get in more)):
                own.update(by_address([*module.parameters(), *module.buffers()]))
            with Watch(own):
                return function(*args)
        return submit(pool, device, call if device == SECOND else function, *args)

    monkeypatch.setattr(multigpu.MultiGPUThreadPool, "submit", watched)
    return patched, conditions
