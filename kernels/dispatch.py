"""Which way an operation goes: its eager form, which is the specification, or a fused Triton kernel.

A kernel runs on a CUDA device of compute capability 8.0 or newer, in fp16, bf16 or fp32, where nothing needs a gradient
and Triton is there. Everywhere else, on the CPU and on other devices first of all, the eager form runs. So it does from a
kernel's first failure on (Triton needs a C compiler on some systems): the log says so once. SANACOG_KERNELS=eager in the
environment switches the kernels off.

Nothing happens when this is imported: Triton and kernels/fused are imported when the first CUDA tensors come.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os

import torch

from . import register

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CAPABILITY = (8, 0)  # Ampere: the first with bf16
DEVICE = "cuda"      # another one in tests only


def fusible(*tensors, compiled=False):
    """Whether a kernel may run on these tensors: see the head of this file; all on one device and none of them empty.

    compiled: whether the kernel is for torch.compile, too. Without that the eager form runs there, which the compiler
    fuses as well as we do.
    """
    if torch.compiler.is_compiling() and not compiled or has_tangents():
        return False
    device = tensors[0].device
    for tensor in tensors:
        if tensor.device != device or tensor.dtype not in DTYPES or not tensor.numel():
            return False
        if tensor.requires_grad and torch.is_grad_enabled():
            return False
    return device.type == DEVICE and available(device.index)


def has_tangents():
    """Whether forward-mode differentiation is under way, which kernels know nothing of."""
    return torch.autograd.forward_ad._current_level >= 0


def available(index):
    """Whether kernels can run on that CUDA device."""
    return _available(index)


# torch.compile takes the answer as a constant. This is all that torch.compiler.assume_constant_result does, which would
# import the whole compiler here.
available._dynamo_marked_constant = True


@functools.cache
def _available(index):
    wanted = os.environ.get("SANACOG_KERNELS", "")
    if wanted not in ("", "eager"):
        logging.warning("SANACOG_KERNELS is '%s'; known is only 'eager', which switches fused kernels off.", wanted)
    reason = "SANACOG_KERNELS=eager" if wanted == "eager" else _obstacle(index)
    if reason:
        logging.info("SanaCog runs without its fused kernels (%s): results are the same, the GPU is slower.", reason)
    return not reason


def _obstacle(index):
    """Why kernels cannot run on that device, or ""."""
    if torch.version.hip:
        return "not made for AMD"
    if (capability := torch.cuda.get_device_capability(index)) < CAPABILITY:
        return "the GPU's compute capability is %d.%d, 8.0 is needed" % capability
    try:
        importlib.import_module(".fused", __package__)
    except ImportError:
        return "Triton is not installed"
    except Exception as error:  # a Triton that does not fit this torch or this system fails in many ways
        return f"Triton does not work here, {type(error).__name__}: {error}"
    return ""


def run(name, *args):
    """A kernel's result, or the eager form's once the kernel has failed. args: its tensors first."""
    if torch.compiler.is_compiling():
        return getattr(torch.ops.sanacog, name)(*args)
    return register.launch(name, *args)
