"""Memory without running: the tensors that are alive at once, on the meta device."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors made inside, and the most that there were at once."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.storages = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}  # out may be a view
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in self.storages | given:
                storage = t.untyped_storage()
                self.storages.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def gone(self, storage, count):
        self.storages.discard(storage)
        self.now -= count


def peak(function, x, *args) -> int:
    """Bytes of the tensors that function(x, *args) makes, at the most."""
    with torch.no_grad(), Alive() as alive:
        function(x, *args)
    return alive.peak
