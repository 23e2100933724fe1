"""DC-AE on pictures larger than memory, to the same numbers: each part of the network in pieces that are exact for it.

Convolutions see a few pixels around each pixel, so a tile that is larger by as much gives its middle exactly; what is over is
cut off after every block, and only a few percent are computed twice. Attention sums over the whole picture: its stages, at an
eighth of the size and below, run on all of it, rows by rows, once for the sum and once to read it.
(sana_core/tiles.py blends tiles that know nothing of each other, for what does not fit even so.)
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch

from ..kernels.linear_attention import read_state, state_of

TILE = 1024                 # pixels a side of a tile at full size
MARGIN = 64                 # pixels beyond each side of a tile that it needs, at most
ROWS_BYTES = 256 * 1024**2  # of the widest tensor, when a stage with attention runs rows by rows


class Step(NamedTuple):
    """A part of the network whose output at a place depends on what is near it.

    call: (B, C, h, w) -> (B, C', ...). reach: pixels that it sees beyond each side of its input. grow: 2 where the output has
    twice the sides, -2 where it has half of them, 1 where they stay.
    """

    call: Callable
    reach: int
    grow: int = 1

    def needs(self, start, stop, length):
        """The part of an input of `length` that the output's start to stop takes; even ends, so that halves meet."""
        if self.grow == 2:
            start, stop = start // 2, -(-stop // 2)
        elif self.grow == -2:
            start, stop = 2 * start, 2 * stop
        start, stop = start - self.reach, stop + self.reach
        return max(0, start - start % 2), min(length, stop + stop % 2)

    def of(self, place):
        """Where a place of the input lies in the output."""
        return place * 2 if self.grow == 2 else place // 2 if self.grow == -2 else place


@torch.no_grad()
def run(parts, x, out, tile: int = TILE, done=lambda: None) -> torch.Tensor:
    """A network (`parts`: Steps, and blocks with attention) on x (B, C, h, w) -> out, which is filled and returned.

    One picture at a time. tile: pixels a side of a tile where the picture is largest. out may be on another device, and of
    another type than the network computes in. done: called after each of `count` pieces of work.
    """
    groups = grouped(parts)
    for i in range(len(x)):
        picture = x[i : i + 1].contiguous(memory_format=torch.channels_last)
        for group in groups:
            if isinstance(group, list):
                picture = in_tiles(group, picture, out[i : i + 1] if group is groups[-1] else None, tile, done)
            else:
                picture = attention_block_in_rows(group, picture)
                done()
    return out


def grouped(parts):
    """Neighbouring Steps in one list, blocks with attention as they are."""
    groups = []
    for part in parts:
        if isinstance(part, Step) and groups and isinstance(groups[-1], list):
            groups[-1].append(part)
        else:
            groups.append([part] if isinstance(part, Step) else part)
    return groups


def count(parts, height: int, width: int, tile: int = TILE) -> int:
    """Pieces of work of one picture whose input is height x width."""
    total, size = 0, (height, width)
    for group in grouped(parts):
        if isinstance(group, list):
            lengths = lengths_of(group, size)
            size, side = lengths[-1], tile_side(lengths, tile)
            total += -(-size[0] // side) * -(-size[1] // side)
        else:
            total += 1
    return total


def lengths_of(steps, size):
    """Sizes of the input and of every step's output."""
    lengths = [tuple(size)]
    for step in steps:
        lengths.append(tuple(step.of(side) for side in lengths[-1]))
    return lengths


def tile_side(lengths, tile):
    """Side of a tile of the output, where the largest of them all is to be `tile`."""
    return max(2, tile * lengths[-1][0] // max(lengths)[0])


def in_tiles(steps, x, out, tile: int, done) -> torch.Tensor:
    """The steps, one after the other, on x (1, C, h, w) -> out, which is filled tile by tile and returned; None: a new tensor,
    as the last step gives it."""
    lengths = lengths_of(steps, x.shape[2:])
    size, tile = lengths[-1], tile_side(lengths, tile)
    for top in range(0, size[0], tile):
        for left in range(0, size[1], tile):
            ends = min(top + tile, size[0]), min(left + tile, size[1])
            wanted = [(top, ends[0]), (left, ends[1])]
            parts = [wanted]  # of every step's output, from the last one backwards
            for step, sides in zip(reversed(steps), reversed(lengths[:-1])):
                parts.append([step.needs(*part, side) for part, side in zip(parts[-1], sides)])
            parts.reverse()
            piece, at = cut(x, parts[0], (0, 0)), parts[0]
            for step, part in zip(steps, parts[1:]):
                piece = cut(step.call(piece), part, [step.of(start) for start, _ in at])
                at = part
            if out is None:
                out = piece.new_empty(1, piece.shape[1], *size).contiguous(memory_format=torch.channels_last)
            out[:, :, top : ends[0], left : ends[1]] = piece.to(out.device, out.dtype)
            done()
    return out


def cut(x, part, begins):
    """The rows and columns `part` of a picture of which x is what begins at `begins`."""
    (top, bottom), (left, right) = part
    x = x[:, :, top - begins[0] : bottom - begins[0], left - begins[1] : right - begins[1]]
    return x.contiguous(memory_format=torch.channels_last)


def attention_block_in_rows(block, x):
    """An EfficientViTBlock on the whole picture (B, C, h, w) without its wide tensors at once. Returns a new tensor."""
    widest = 8 * x.shape[1] * x.shape[3] * len(x) * x.element_size()  # a row of the feed-forward network's inside
    rows = max(1, ROWS_BYTES // widest)
    if rows >= x.shape[2]:
        return block(x)
    return rows_of(block.conv_out, attention_in_rows(block.attn, x, rows), rows, 1)


def rows_of(call, x, rows, reach):
    """call, which sees `reach` rows beyond its own, on `rows` rows at a time."""
    out = torch.empty_like(x)
    for start in range(0, x.shape[2], rows):
        stop, first = min(start + rows, x.shape[2]), max(0, start - reach)
        piece = call(x[:, :, first : stop + reach])
        out[:, :, start:stop] = piece[:, :, start - first : stop - first]
    return out


def attention_in_rows(attn, x, rows):
    """A LinearAttention on x (B, C, h, w), with its norm and residual."""
    reach = max((project.proj_in.padding[0] for project in attn.to_qkv_multiscale), default=0)

    def parts():
        for start in range(0, x.shape[2], rows):
            stop, first = min(start + rows, x.shape[2]), max(0, start - reach)
            scales = attn.scales(x[:, :, first : stop + reach])
            yield start, stop, [scale[:, :, start - first : stop - first] for scale in scales]

    states = None
    for _, _, scales in parts():
        found = [state_of(*attn.split(scale)[1:]) for scale in scales]
        states = found if states is None else [state + new for state, new in zip(states, found)]
    out = torch.empty_like(x)
    for start, stop, scales in parts():
        seen = [read_state(attn.split(scale)[0], state).flatten(2).unflatten(1, (stop - start, -1))
                for scale, state in zip(scales, states)]
        out[:, :, start:stop] = attn.leave(seen, x[:, :, start:stop])
    return out
