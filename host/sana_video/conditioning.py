"""What a clip of SANA-Video begins with: a picture, or a clip that goes on. As LATENTs with a mask of what is to be drawn."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.utils
import torch


def image_to_video(vae, width: int, height: int, length: int, batch_size: int, start_image) -> dict:
    """LATENT whose first frame is the first of start_image's pictures (N, H, W, 3), and whose others are to be drawn.

    The picture is scaled until it covers width x height, and cropped. vae: the model's, of which the sizes of a latent pixel are
    known. Raises ValueError for sizes that are no multiples of those, and for a VAE of pictures.
    """
    frames, pixels = compression(vae)
    for name, value in (("width", width), ("height", height)):
        if value < pixels or value % pixels:
            raise ValueError(f"{name} is {value}: it must be a multiple of {pixels} with this autoencoder.")
    if length < 1 or (length - 1) % frames:
        below = max(1, length - (length - 1) % frames)
        raise ValueError(f"length is {length}: it must be {frames} n + 1, such as {below} or {below + frames}.")
    if start_image.shape[0] < 1:
        raise ValueError("start_image holds no picture: connect one.")
    picture = comfy.utils.common_upscale(start_image[:1, ..., :3].movedim(-1, 1), width, height, "bicubic", "center")
    first = vae.encode(picture.movedim(1, -1).clamp(0, 1))[:, :, :1].to(mm.intermediate_device())
    samples = first.new_zeros(1, first.shape[1], (length - 1) // frames + 1, *first.shape[-2:])
    samples[:, :, :1] = first
    return _begun({"samples": samples.repeat(batch_size, 1, 1, 1, 1)}, 1)


def continued(latent: dict, frames: int) -> dict:
    """LATENT of a finished clip (B, C, F, h, w) and `frames` latent frames more, which are to be drawn. Raises ValueError."""
    samples = latent["samples"]
    if samples.ndim != 5:
        raise ValueError(f"This latent is of a picture ({' x '.join(map(str, samples.shape))}): a clip that goes on is needed, from "
                         "a sampler with a SANA-Video model.")
    if frames < 1:
        raise ValueError(f"frames is {frames}: at least 1 latent frame has to follow.")
    more = samples.new_zeros(*samples.shape[:2], frames, *samples.shape[3:])
    return _begun({**latent, "samples": torch.cat([samples, more], dim=2)}, samples.shape[2])


def _begun(latent, given: int):
    """With a mask of all but the first `given` frames."""
    samples = latent["samples"]
    mask = samples.new_ones(samples.shape[0], 1, *samples.shape[2:])
    mask[:, :, :given] = 0
    return {**latent, "noise_mask": mask}


def compression(vae) -> tuple[int, int]:
    """(frames, pixels a side) of one latent pixel. Raises ValueError for a VAE that has no frames."""
    frames = vae.temporal_compression_decode()
    if frames is None:
        raise ValueError("This VAE is one of pictures: load Wan 2.1's or LTX-2's with Load VAE, whichever belongs to the model.")
    return frames, vae.spacial_compression_encode()
