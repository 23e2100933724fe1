"""What hosts newer than those at hand ask for, with stand-ins for them."""

import sys
from types import ModuleType

import pytest
import torch

from . import tiny


@pytest.fixture
def compat(comfyui_path):
    tiny.import_host(comfyui_path)
    from sanacog.host import compat

    return compat


def test_a_patcher_is_told_whether_the_disk_is_fast(compat, monkeypatch):
    """ComfyUI 0.38 and newer."""
    import comfy
    import comfy.model_patcher

    asked = []

    class Patcher(comfy.model_patcher.ModelPatcher):
        def __init__(self, *args, fast_disk=False, **keywords):
            super().__init__(*args, **keywords)
            self.fast_disk = fast_disk

    storage = ModuleType("comfy.storage")
    storage.state_dict_fast_disk = lambda tensors: asked.append(tensors) or True
    monkeypatch.setitem(sys.modules, "comfy.storage", storage)
    monkeypatch.setattr(comfy, "storage", storage, raising=False)
    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Patcher, raising=False)
    tensors, cpu = {"weight": torch.ones(1)}, torch.device("cpu")
    assert compat.model_patcher(torch.nn.Linear(1, 1), cpu, cpu, tensors).fast_disk is True and asked == [tensors]


def test_a_patcher_that_does_not_ask(compat):
    cpu = torch.device("cpu")
    assert compat.model_patcher(torch.nn.Linear(1, 1), cpu, cpu, {}).load_device == cpu
