"""The register of fast paths: each operation's fused kernel and its eager form, by name, and the launch of one or the other.

The operations' files put their eager forms in, kernels/fused the kernels; both stand above this file and neither knows
the other.
"""

from __future__ import annotations

import logging

import torch

_kernels = {}    # name: the fused kernel
_eager = {}      # name: what runs without it, with its result in the same layout
_broken = set()  # names of kernels that have failed


def add_kernel(name, kernel):
    """Called by kernels/fused: kernel(*args) is the fused form."""
    _kernels[name] = kernel


def add_eager(name, eager):
    """Called by an operation's file: eager(*args) takes and returns what the kernel does, in the same memory layout."""
    _eager[name] = eager


def launch(name, *args):
    """A kernel's result, or the eager form's once the kernel has failed. args: its tensors first. Tensors of other devices
    are taken, too: for them the eager form runs."""
    if name not in _broken and args[0].is_cuda:
        try:
            with torch.cuda.device(args[0].device):  # Triton launches on the current one
                return _kernels[name](*args)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            _broken.add(name)
            logging.warning("SanaCog's kernel %s failed and is off from now on: %s: %s", name, type(error).__name__, error)
    return _eager[name](*args)
