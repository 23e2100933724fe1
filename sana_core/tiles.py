"""DC-AE on pictures larger than memory: tile by tile into one output, blended where tiles overlap.

DC-AE's attention sums over the whole picture, so a tile differs from its place in the picture everywhere and not at its
edges alone: tiles should be as large as the pictures that the network was trained on, and fade into each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tiles:
    """Size of a tile and least overlap of two neighbours, in latents, so that tiles lie on the latent grid. The defaults
    are 1024 px and 128 px. Raises ValueError for an overlap of more than half a tile."""

    height: int = 32
    width: int = 32
    overlap: int = 4

    def __post_init__(self):
        if min(self.height, self.width) < 1 or not 0 <= 2 * self.overlap <= min(self.height, self.width):
            raise ValueError(f"{self}: a tile's sides must be at least 1, and the overlap at least 0 and at most half of them.")

    def count(self, height: int, width: int) -> int:
        """How many tiles a latent of that size has."""
        return len(starts(height, self.height, self.overlap)) * len(starts(width, self.width, self.overlap))


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles along a side begin: as few as can be, spread evenly, all of full size."""
    if length <= tile:
        return [0]
    gaps = -(-(length - tile) // (tile - overlap))
    return [i * (length - tile) // gaps for i in range(gaps + 1)]


def shares(length: int, tile: int, overlap: int, unit: int) -> list[tuple[int, torch.Tensor]]:
    """(start, its share of each of its pixels) of the tiles along a side; unit: pixels a latent. A share falls linearly
    over all that a tile has in common with a neighbour; at each pixel they add up to 1."""
    begins, tile = starts(length, tile, overlap), min(tile, length)
    total, rows = torch.zeros(length * unit), []
    for i, start in enumerate(begins):
        share = torch.ones(tile * unit)
        if i > 0:
            common = (begins[i - 1] + tile - start) * unit
            share[:common] *= rising(common)
        if i + 1 < len(begins):
            common = (start + tile - begins[i + 1]) * unit
            share[len(share) - common :] *= rising(common).flip(0)
        total[start * unit :][: len(share)] += share
        rows.append((start, share))
    return [(start, share / total[start * unit :][: len(share)]) for start, share in rows]


def rising(count: int) -> torch.Tensor:
    """`count` numbers from near 0 to near 1; they and their mirror image add up to 1."""
    return (torch.arange(count) + 0.5) / count


def blend(network, source, out, tiles: Tiles):
    """network on the tiles of `source`, blended into `out`, which is overwritten and returned.

    source (B, C, H, W) and out (B, C', H', W'): a latent and its picture, or a picture and its latent. network: a tile
    of source (1, C, h, w) -> the same tile of out. One tile of one picture at a time, so memory is that of a tile,
    beside source and out, which may be on another device than the network.
    """
    height, width = (min(sides) for sides in zip(source.shape[2:], out.shape[2:]))  # of the latent, the smaller one
    tile = min(tiles.height, height), min(tiles.width, width)
    rows = shares(height, tiles.height, tiles.overlap, out.shape[2] // height)
    columns = shares(width, tiles.width, tiles.overlap, out.shape[3] // width)

    def part(whole, top, left):
        unit = whole.shape[2] // height
        return whole[:, :, unit * top : unit * (top + tile[0]), unit * left : unit * (left + tile[1])]

    out.zero_()
    for i in range(len(source)):
        for top, vertical in rows:
            for left, horizontal in columns:
                piece = network(part(source[i : i + 1], top, left))
                share = (vertical[:, None] * horizontal).to(piece.device)
                part(out[i : i + 1], top, left).add_((piece.float() * share).to(out))
    return out
