"""Scale and shift from the latent's grid, then SiLU, in place: one read and one write of the clip."""

import triton
import triton.language as tl

from .. import register
from ..latent_frames import latent_of_frame

ROWS, COLUMNS = 8, 128  # a program's part of a frame


@triton.jit
def scale_shift_silu_kernel(x, scale, shift, frames, height, width, latents, rows, columns, first, ratio, tiles,
                            ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """x (B * C, frames, height, width); scale and shift (B * C, latents, rows, columns); all contiguous."""
    plane = tl.program_id(0)
    channel = plane // frames
    frame = plane % frames
    latent = tl.where(frame < first, 0, first + (frame - first) // ratio)
    y = tl.program_id(1) // tiles * ROWS + tl.arange(0, ROWS)
    z = tl.program_id(1) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    inside = (y < height)[:, None] & (z < width)[None, :]
    at = x + plane.to(tl.int64) * height * width + y[:, None] * width + z[None, :]
    source = (channel * latents + latent).to(tl.int64) * rows * columns
    source += (y // (height // rows))[:, None] * columns + (z // (width // columns))[None, :]
    value = tl.load(at, inside, 0.0).to(tl.float32)
    value = value * tl.load(scale + source, inside, 0.0).to(tl.float32) + tl.load(shift + source, inside, 0.0).to(tl.float32)
    tl.store(at, value / (1 + tl.exp(-value)), inside)


def launch(x, scale, shift):
    batch, channels, frames, height, width = x.shape
    scale, shift = scale.contiguous(), shift.contiguous()
    latents, rows, columns = scale.shape[2:]
    tiles = triton.cdiv(width, COLUMNS)
    scale_shift_silu_kernel[batch * channels * frames, triton.cdiv(height, ROWS) * tiles](
        x, scale, shift, frames, height, width, latents, rows, columns, *latent_of_frame(frames, latents), tiles,
        ROWS=ROWS, COLUMNS=COLUMNS)
    return x


register.add_kernel("scale_shift_silu", launch)
