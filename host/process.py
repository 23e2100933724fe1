"""ComfyUI's modules in a process that ComfyUI did not start."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def start(place: Path) -> None:
    """Make the ComfyUI at `place` importable, on the CPU where torch sees nothing else; no effect if it is already.

    Before any other room of host/ is imported: they import ComfyUI.
    """
    if "comfy" in sys.modules:
        return
    sys.path.insert(0, str(place))
    import comfy.cli_args

    comfy.cli_args.args.cpu = not torch.accelerator.is_available()
