"""A clip that goes on: its last frames are the first ones of a next stretch, and stretches are joined to one clip.

The frames go through the VAE anew, for a latent of the middle of a clip holds four frames and the first of a stretch one. In
the next stretch they are held by a noise mask, which every stock sampler obeys; models that take pictures are shown them,
too.
"""

from __future__ import annotations

import torch

from ...cogvideo_core.config import CogVideoParams
from .conditioning import check_frames, check_vae, encoded, fun_inpaint, image_to_video
from .model import FRAMES, empty_latent

SIDE = 16  # px that the sides of a clip are multiples of


def continued(model, positive, negative, vae, video, length: int, overlap: int):
    """(positive, negative, LATENT) of a stretch of `length` frames that begins with the last `overlap` frames of video (N,
    H, W, 3).

    overlap: 4 n + 1, less than length. The LATENT is masked: its first n + 1 latents are the frames'. A model that takes a
    start picture is shown the first of them, Fun InP all; a control video in the conditionings stays. Raises ValueError.
    """
    params = params_of(model)
    check_frames(video, "video")
    check_vae(vae)
    count, height, width = video.shape[:3]
    latent = empty_latent(width, height, length)
    if width % SIDE or height % SIDE:
        raise ValueError(f"video is {width} x {height} px: sides must be multiples of {SIDE}. Scale it, to "
                         f"{width // SIDE * SIDE} x {height // SIDE * SIDE} for example, and join the stretches with "
                         "what you scaled.")
    check_overlap(overlap, count, "video")
    if overlap % FRAMES != 1:
        raise ValueError(f"overlap is {overlap}: frames go into latents as 4 n + 1, so take 1, 5, 9 or 13.")
    if overlap >= length:
        raise ValueError(f"overlap is {overlap} and length {length}: nothing new would be drawn. Set length to "
                         f"{overlap + FRAMES} or more, or overlap to less.")
    frames = video[-overlap:, :, :, :3]
    held = encoded(vae, frames)
    samples = latent["samples"]
    samples[:, :, :held.shape[2]] = held.to(samples)
    mask = samples.new_ones(samples.shape[2], 1, *samples.shape[3:])
    mask[:held.shape[2]] = 0.0
    size = (width, height, length, 1)
    if params.conditioning in ("image", "repeated_image"):
        positive, negative, _ = image_to_video(positive, negative, vae, *size, frames[:1])
    elif params.conditioning == "inpaint":
        positive, negative, _ = fun_inpaint(positive, negative, vae, *size, start_image=frames)
    return positive, negative, {**latent, "noise_mask": mask}


def joined(first, second, overlap: int, hold_colour: float = 1.0):
    """IMAGE (N + M - overlap, H, W, 3) of two clips, of which the second begins with the last `overlap` frames of the first.

    The shared frames fade from the one to the other. hold_colour: how far each channel of the second is moved by the median
    of what it differs by from the first in the shared frames, 0 to 1. (Their means and spreads would do where nothing but
    colour differs; a shape that came out a little smaller or paler would then colour all that follows.) Raises ValueError.
    """
    for frames, name in ((first, "first"), (second, "second")):
        check_frames(frames, name)
        check_overlap(overlap, len(frames), name)
    if first.shape[1:3] != second.shape[1:3]:
        sizes = [f"{frames.shape[2]} x {frames.shape[1]} px" for frames in (first, second)]
        raise ValueError(f"first is {sizes[0]}, second {sizes[1]}: clips that are joined have one size. Scale one of them.")
    first, second = first[..., :3], second[..., :3].to(first)
    end, start = first[-overlap:], second[:overlap]
    second = second + hold_colour * (end - start).flatten(0, -2).median(0).values
    share = torch.arange(1, overlap + 1).reshape(-1, 1, 1, 1).to(first) / (overlap + 1)
    return torch.cat([first[:-overlap], torch.lerp(end, second[:overlap], share), second[overlap:]]).clamp(0.0, 1.0)


def params_of(model) -> CogVideoParams:
    """A MODEL's configuration. Raises ValueError for one that is no CogVideoX of this pack."""
    params = getattr(model.model.model_config, "params", None)
    if not isinstance(params, CogVideoParams):
        raise ValueError(f"This model is {type(model.model).__name__}, not a CogVideoX from Load CogVideoX Model, which is "
                         "needed to know how it takes frames.")
    return params


def check_overlap(overlap: int, count: int, name: str) -> None:
    """Raise ValueError unless a clip of `count` frames has `overlap` of them to share."""
    if not 1 <= overlap <= count:
        raise ValueError(f"overlap is {overlap}, and {name} has {count} frame{'s' * (count > 1)}: take 1 to {count}.")
