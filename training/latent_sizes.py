"""Of which sizes the latents of each autoencoder are, and which sizes of pictures and clips go with them."""

from __future__ import annotations

from typing import NamedTuple


class LatentSize(NamedTuple):
    """pixels: a side of one. frames: of a clip in one, but for the first, which stands alone; 0 for pictures. step: px that sides
    are multiples of, as the networks see patches of latents."""

    pixels: int
    frames: int
    step: int

    def of(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        """The size (f, h, w), or (h, w) of a picture, of the latent of a clip in pixels."""
        sides = height // self.pixels, width // self.pixels
        return (-(-(frames - 1) // self.frames) + 1, *sides) if self.frames else sides


SIZES = {"dcae": LatentSize(32, 0, 32), "cogvideox": LatentSize(8, 4, 16), "wan": LatentSize(8, 4, 16), "ltx2": LatentSize(32, 8, 32)}
