"""The fused kernels one by one, beside the eager operations that they stand for, at the models' sizes.

Memory is what they wait for, so each is also held against the time in which the device copies as many bytes as the
operation has to read and write at least. Kernels that work in place get a fresh copy each time, which counts as well.
"""

from __future__ import annotations

import torch

from ..kernels import dispatch, glumbconv, linear_attention, rms_norm, rope, spatial_norm
from .harness import Case
from .sides import LIMITS

SIZES = {
    "linear attention": [(2, 1024, 36), (2, 1024, 70), (2, 16384, 70), (1, 16384, 16)],  # batch, tokens, heads; DC-AE last
    "gated depthwise": [(2, 32, 32, 2880), (2, 32, 32, 5600), (2, 128, 128, 5600)],       # batch, height, width, hidden
    "RMS norm": [(1, 128, 1024, 1024), (1, 1024, 32, 32)],                                # batch, channels, height, width
    "rotary code": [(2, 17776, 48)],                                                      # batch, tokens, heads
    "scale, shift, SiLU": [(1, 128, 8, 480, 720)],                                        # batch, channels, frames, h, w
}


def attention(batch, tokens, heads, **kw):
    """-> (name of the kernel, inputs, passes over the first input's numbers that it takes at least)."""
    return "relu_linear_attention", [*(torch.randn(batch, tokens, heads, 32, **kw) for _ in range(3)), 1e-15], 4


def gate(batch, height, width, hidden, **kw):
    x = torch.randn(batch, height, width, 2, hidden, **kw).permute(0, 3, 4, 1, 2)
    return "gated_depthwise", [x, torch.randn(2 * hidden, 1, 3, 3, **kw), torch.randn(2 * hidden, **kw)], 1.5


def norm(batch, channels, height, width, **kw):
    x, residual = (torch.randn(batch, channels, height, width, **kw).contiguous(memory_format=torch.channels_last)
                   for _ in range(2))
    return "rms_norm", [x, torch.randn(channels, **kw), torch.randn(channels, **kw), 1e-5, residual, None], 5


def rotary(batch, tokens, heads, **kw):
    angles = torch.randn(tokens, 32, device=kw["device"])
    return "rotate_pairs", [torch.randn(batch, tokens, heads, 64, **kw), angles.cos(), angles.sin()], 4


def spatial(batch, channels, frames, height, width, **kw):
    at_latent = (torch.randn(batch, channels, 2, height // 8, width // 8, **kw) for _ in range(2))
    return "scale_shift_silu", [torch.randn(batch, channels, frames, height, width, **kw), *at_latent], 4


MAKE = dict(zip(SIZES, (attention, gate, norm, rotary, spatial)))
EAGER = {"relu_linear_attention": linear_attention.eager, "gated_depthwise": glumbconv.eager, "rms_norm": rms_norm.eager,
         "rotate_pairs": rope.eager, "scale_shift_silu": spatial_norm.eager}
IN_PLACE = {"rms_norm", "rotate_pairs", "scale_shift_silu"}


def kernel(what, size, device, dtype, sets=1):
    """One kernel of SIZES beside its eager form -> Case, whose `moved` is the least number of bytes. Raises ValueError
    on a device that kernels do not run on."""
    made = [MAKE[what](*size, device=device, dtype=dtype) for _ in range(sets)]
    name, arguments, passes = made[0]
    if not dispatch.fusible(*(a for a in arguments if isinstance(a, torch.Tensor)), compiled=True):
        raise ValueError(f"{what}: no fused kernels on this device")

    def call(form):
        if name in IN_PLACE:
            return lambda x, *rest: form(x.clone(), *rest)
        return form

    return Case(f"{what}, {' x '.join(map(str, size))}", call(lambda *args: dispatch.run(name, *args)), call(EAGER[name]),
                [tuple(arguments) for _, arguments, _ in made], LIMITS[dtype],
                moved=int(passes * arguments[0].nbytes))


def copy_bandwidth(clock, device, size=2**30):
    """Bytes a second, read and written, of a copy of `size` bytes: the median of ten."""
    source, target = (torch.ones(size // 4, device=device) for _ in range(2))
    seconds = sorted(clock.seconds([clock.run(lambda: target.copy_(source)) for _ in range(12)][2:]))
    return 2 * size / seconds[len(seconds) // 2]
