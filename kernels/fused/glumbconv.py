"""SiLU, depthwise 3x3 convolution and gate in one pass: every input is read once and a third of it written.

A program has a few columns of the picture and a block of channels, and walks down the rows. An input row, activated once,
is added to the three output rows that see it, of which two are under way at any time. What is done twice is the columns
and rows at the edges of a program's part: 1.7 activations an input where one thread a pixel would need 9, which would
make the exponentials, not the memory, the limit.
"""

import torch
import triton
import triton.language as tl

from .. import register

CHANNELS = 256  # two a thread: one 128-byte line of memory a warp in 16 bits
COLUMNS = 4
ROWS = 16


@triton.jit
def silu(x):
    return x / (1 + tl.exp(-x))


@triton.jit
def activated_row(x, row, left, height, width, x_h, x_w, valid, COLUMNS: tl.constexpr):
    """SiLU of columns left - 1 ... left + COLUMNS of a row: a tuple of channel vectors in fp32, zeros off the picture."""
    line = ()
    for j in tl.static_range(COLUMNS + 2):
        column = left + j - 1
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        line = line + (silu(tl.load(x + row * x_h + column * x_w, valid & inside, 0.0).to(tl.float32)),)
    return line


@triton.jit
def kernel_row(line, taps, COLUMNS: tl.constexpr):
    """What a row of three taps makes of a row of the picture: a tuple of COLUMNS vectors."""
    out = ()
    for j in tl.static_range(COLUMNS):
        out = out + (line[j] * taps[0] + line[j + 1] * taps[1] + line[j + 2] * taps[2],)
    return out


@triton.jit
def plus(a, b, COLUMNS: tl.constexpr):
    out = ()
    for j in tl.static_range(COLUMNS):
        out = out + (a[j] + b[j],)
    return out


@triton.jit
def repeated(vector, COLUMNS: tl.constexpr):
    out = ()
    for j in tl.static_range(COLUMNS):
        out = out + (vector,)
    return out


@triton.jit
def taps_of(weight, channel, valid):
    """The three rows of the channels' 3x3 kernels, each a tuple of three vectors in fp32."""
    rows = ()
    for i in tl.static_range(3):
        taps = ()
        for j in tl.static_range(3):
            taps = taps + (tl.load(weight + channel * 9 + 3 * i + j, valid, 0.0).to(tl.float32),)
        rows = rows + (taps,)
    return rows


@triton.jit
def gated_kernel(x, weight, bias, out, height, width, hidden, strips, x_b, x_g, x_c, x_h, x_w,
                 CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """x (B, 2, hidden, H, W) by strides, weight (2 * hidden, 9), bias (2 * hidden,), out (B, H, W, hidden)."""
    place = tl.program_id(0)
    left = place // strips * COLUMNS
    top = place % strips * ROWS
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    valid = channel < hidden
    batch = tl.program_id(2).to(tl.int64)
    values = x + batch * x_b + channel * x_c
    gates = values + x_g
    out += batch * height * width * hidden + channel

    value_taps = taps_of(weight, channel, valid)
    gate_taps = taps_of(weight, channel + hidden, valid)
    value_bias = tl.load(bias + channel, valid, 0.0).to(tl.float32)
    gate_bias = tl.load(bias + channel + hidden, valid, 0.0).to(tl.float32)

    # Of the two output rows under way, `first` lacks one input row more and `second` two.
    value_first = repeated(value_bias, COLUMNS)
    value_second = value_first
    gate_first = repeated(gate_bias, COLUMNS)
    gate_second = gate_first
    for i in range(ROWS + 2):
        row = (top + i - 1).to(tl.int64)
        line = activated_row(values, row, left, height, width, x_h, x_w, valid, COLUMNS)
        value = plus(value_first, kernel_row(line, value_taps[2], COLUMNS), COLUMNS)
        value_first = plus(value_second, kernel_row(line, value_taps[1], COLUMNS), COLUMNS)
        value_second = plus(repeated(value_bias, COLUMNS), kernel_row(line, value_taps[0], COLUMNS), COLUMNS)
        line = activated_row(gates, row, left, height, width, x_h, x_w, valid, COLUMNS)
        gate = plus(gate_first, kernel_row(line, gate_taps[2], COLUMNS), COLUMNS)
        gate_first = plus(gate_second, kernel_row(line, gate_taps[1], COLUMNS), COLUMNS)
        gate_second = plus(repeated(gate_bias, COLUMNS), kernel_row(line, gate_taps[0], COLUMNS), COLUMNS)
        for j in tl.static_range(COLUMNS):
            done = valid & (i >= 2) & (row - 1 < height) & (left + j < width)
            tl.store(out + ((row - 1) * width + left + j) * hidden, value[j] * silu(gate[j]), done)


def launch(x, weight, bias):
    batch, _, hidden, height, width = x.shape
    weight = weight.contiguous()
    out = x.new_empty(batch, height, width, hidden)
    strips = triton.cdiv(height, ROWS)
    grid = strips * triton.cdiv(width, COLUMNS), triton.cdiv(hidden, CHANNELS), batch
    gated_kernel[grid](x, weight, bias, out, height, width, hidden, strips, *x.stride(),
                       CHANNELS=CHANNELS, COLUMNS=COLUMNS, ROWS=ROWS)
    return out.permute(0, 3, 1, 2)


register.add_kernel("gated_depthwise", launch)


@torch.library.custom_op("sanacog::gated_depthwise", mutates_args=())
def operator(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return register.launch("gated_depthwise", x, weight, bias)


@operator.register_fake
def _(x, weight, bias):
    batch, _, hidden, height, width = x.shape
    return x.new_empty(batch, height, width, hidden).permute(0, 3, 1, 2)
