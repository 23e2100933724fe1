"""Of which sizes the latents of each autoencoder are, and which sizes of pictures and clips go with them."""

from __future__ import annotations

from typing import NamedTuple


class LatentSize(NamedTuple):
    """pixels: a side of one. step: px that sides are multiples of, as the networks see patches of latents. frames: of a clip in
    one latent, but for the first, which stands alone; 0 for pictures. clip_step: clips have a multiple of it and one more frames,
    as CogVideoX' decoder takes an even number of latents for a clip without a frame that stands alone."""

    pixels: int
    step: int
    frames: int = 0
    clip_step: int = 0

    def of(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        """The size (f, h, w), of a picture (h, w), of the latent of so many pixels."""
        sides = height // self.pixels, width // self.pixels
        return (-(-(frames - 1) // self.frames) + 1, *sides) if self.frames else sides


SIZES = {"dcae": LatentSize(32, 32), "cogvideox": LatentSize(8, 16, 4, 8), "wan": LatentSize(8, 16, 4, 4),
         "ltx2": LatentSize(32, 32, 8, 8)}
