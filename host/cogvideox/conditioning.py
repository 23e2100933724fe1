"""What CogVideoX is given besides text: a start and an end picture, a masked video, a control video.

Each function returns (positive, negative, LATENT). It encodes through the host's VAE object, so that offloading works,
and leaves unscaled latents in the conditioning under "concat_latent_image" (1, 16, T, h, w), with zeros where nothing
is given, and for inpainting a mask under "concat_mask" (1, 1, T, h, w), 1 where the model is to draw; what it is stands
beside it. How each variant takes them is decided in channels.py. Frames are IMAGEs: (N, H, W, 3) in [0, 1].
"""

from __future__ import annotations

import logging

import comfy.utils
import node_helpers
import torch
import torch.nn.functional as F

from ..memory import check_fits
from .channels import GIVEN
from .model import FRAMES, empty_latent
from .sampling import LATENT_CHANNELS
from .vae import CogVideoXVAE

SMALLEST = 8  # px a side of a picture that is taken


def image_to_video(positive, negative, vae, width: int, height: int, length: int, batch_size: int, start_image,
                   end_image=None, strength: float = 1.0, noise_augmentation: float = 0.0, noise_seed: int = 0):
    """The first picture of `start_image` as the first latent, the last one of `end_image` as the last latent.

    strength: factor on both, over the scale that the variant was trained with. noise_augmentation: standard deviation
    of normal noise on the pictures (as pixels in [-1, 1]); training drew it around 0.05. Raises ValueError.
    """
    latent = empty_latent(width, height, length, batch_size)
    check_vae(vae)
    pictures = [fitted(start_image[:1], width, height, "start_image")]
    if end_image is not None:
        if length == 1:
            raise ValueError("length is 1: there is no place for an end_image. Take length 5 or more, or no end_image.")
        pictures.append(fitted(end_image[-1:], width, height, "end_image"))
    noisy = noised(torch.cat(pictures), noise_augmentation, noise_seed)
    # One by one: together the VAE would take them for a clip.
    first, *last = (encoded(vae, picture[None]) for picture in noisy)
    clip = first.new_zeros(1, LATENT_CHANNELS, *latent["samples"].shape[2:])
    clip[:, :, :1] = first
    if last:
        clip[:, :, -1:] = last[0]
    values = {"concat_latent_image": clip * strength, GIVEN: "images" if last else "image"}
    return *conditioned(positive, negative, values), latent


def fun_inpaint(positive, negative, vae, width: int, height: int, length: int, batch_size: int, start_image=None,
                end_image=None, video=None, mask=None, noise_augmentation: float = 0.0, noise_seed: int = 0):
    """For CogVideoX-Fun InP: the clip that is known in parts, and a mask of what is to be drawn.

    Either start_image and end_image (one or more frames at the clip's start and end), or video and mask (M, H, W) with
    1 where it is to be drawn, one for all frames or one each; or nothing: then it is text to video.
    A latent is known or drawn with all of its frames (the reference puts black frames into one that it says is known).
    noise_augmentation: as in `image_to_video`, on the known pixels. Raises ValueError.
    """
    latent = empty_latent(width, height, length, batch_size)
    if (video is None) != (mask is None):
        raise ValueError(f"{'mask' if video is None else 'video'} is given alone: video and mask go together. Give both, "
                         "or start_image and end_image, or nothing for text to video.")
    if video is not None and (start_image is not None or end_image is not None):
        raise ValueError("Both a video with its mask and a start_image or end_image are given: take one of the two.")
    check_clip_fits(width, height, length)
    if video is not None:
        check_vae(vae)
        video = first_frames(video, length, "video")
        drawn = fitted_mask(first_frames(mask, length, "mask") if mask.ndim == 3 and len(mask) > 1 else mask, video,
                            width, height)
        if not drawn.any():
            raise ValueError("The mask is empty, so that nothing is to be drawn. Paint on it, or invert it: white is what "
                             "the model draws.")
        video, drawn = fitted(video, width, height, "video"), in_any_frame(drawn.expand(length, -1, -1))
    elif start_image is not None or end_image is not None:
        check_vae(vae)
        start, end = (None if frames is None else fitted(frames, width, height, name)
                      for name, frames in (("start_image", start_image), ("end_image", end_image)))
        video, drawn = between(start, end, length)
    if video is None or drawn.all():
        return positive, negative, latent
    # Black is what the model was shown at the places that it had to draw.
    known = noised(video, noise_augmentation, noise_seed) * (1.0 - drawn).unsqueeze(-1)
    clip = encoded(vae, known)
    values = {GIVEN: "inpaint", "concat_latent_image": clip, "concat_mask": to_latent_grid(drawn, clip.shape[2:])}
    return *conditioned(positive, negative, values), latent


def fun_control(positive, negative, vae, width: int, height: int, length: int, batch_size: int, control_video,
                strength: float = 1.0):
    """For CogVideoX-Fun Control and Pose: a video of edges, depth, poses that the clip follows frame by frame.

    strength: factor on its latent. Raises ValueError.
    """
    latent = empty_latent(width, height, length, batch_size)
    check_clip_fits(width, height, length)
    check_vae(vae)
    clip = encoded(vae, fitted(first_frames(control_video, length, "control_video"), width, height, "control_video"))
    return *conditioned(positive, negative, {"concat_latent_image": clip * strength, GIVEN: "control"}), latent


def conditioned(positive, negative, values: dict):
    """Both conditionings with `values` set in copies of them."""
    return tuple(node_helpers.conditioning_set_values(one, values) for one in (positive, negative))


def check_vae(vae) -> None:
    """Raise ValueError unless the VAE makes latents of CogVideoX's kind: 16 channels of a video, 8 px a side."""
    channels, dims = getattr(vae, "latent_channels", None), getattr(vae, "latent_dim", None)
    if (channels, dims) != (LATENT_CHANNELS, 3):
        raise ValueError(f"This VAE is another model's: it makes latents of {channels} channels in {dims} dimensions, "
                         f"CogVideoX has {LATENT_CHANNELS} in 3. Load one with Load CogVideoX VAE.")


def check_clip_fits(width: int, height: int, length: int) -> None:
    """Raise ValueError when the frames of a clip, and the copy of them that the VAE takes, are more than the machine's
    memory."""
    check_fits(2 * 3 * 4 * length * height * width, torch.device("cpu"),
               f"A clip of {length} frames of {width} x {height} px", "Take fewer frames (length) or a smaller size.")


def check_frames(frames, name: str) -> None:
    """Raise ValueError for frames in which there is nothing to see."""
    count, height, width = frames.shape[:3] if frames.ndim >= 3 else (0, 0, 0)
    if 0 in frames.shape or frames.ndim < 3:
        raise ValueError(f"{name} is empty: {' x '.join(map(str, frames.shape))}. A file without pictures, as a sound "
                         "file loaded as a video, has no frames.")
    if min(height, width) < SMALLEST:
        raise ValueError(f"{name} is {width} x {height} px: each side must be at least {SMALLEST}.")


def first_frames(frames, length: int, name: str):
    """The first `length` frames. Raises ValueError when there are fewer."""
    check_frames(frames, name)
    count = frames.shape[0]
    if count < length:
        fits = 1 + (count - 1) // 4 * 4
        raise ValueError(f"{name} has {count} frame{'s' * (count > 1)}, length asks for {length}: set length to {fits}, "
                         "or give a longer one.")
    if count > length:
        logging.info("%s: the first %d of %d frames are used, as length says", name, length, count)
    return frames[:length]


def fitted(frames, width: int, height: int, name: str):
    """Frames (N, H, W, C) -> (N, height, width, 3): scaled until they cover it, what is over cropped on both sides."""
    check_frames(frames, name)
    if frames.shape[-1] < 3:
        raise ValueError(f"{name} has {frames.shape[-1]} channels: an IMAGE has 3, or 4 with alpha.")
    frames = frames[..., :3]
    if frames.shape[1:3] == (height, width):
        return frames
    return comfy.utils.common_upscale(frames.movedim(-1, 1), width, height, "lanczos", "center").movedim(1, -1)


def fitted_mask(mask, video, width: int, height: int):
    """Mask (M, H, W) or (H, W) of a video (N, H', W', 3) -> (M, height, width) of 0 and 1, scaled and cropped with it."""
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    check_frames(mask[:, 0], "mask")
    # A mask is often smaller than its picture (64 x 64 where none was painted): first to the picture's size.
    if mask.shape[-2:] != video.shape[1:3]:
        mask = comfy.utils.common_upscale(mask, video.shape[2], video.shape[1], "bilinear", "disabled")
    if mask.shape[-2:] != (height, width):
        mask = comfy.utils.common_upscale(mask, width, height, "bilinear", "center")
    return (mask[:, 0] >= 0.5).float()


def between(start, end, length: int):
    """A clip (length, H, W, 3) that begins with the frames `start` and ends with `end` (None: open), black between,
    and its mask (length, H, W), 1 between. A latent that they fill in part is filled up by repeating the frame next to the
    gap, and said so. Raises ValueError when they do not fit, and when they leave nothing to draw."""
    count = [0 if frames is None else len(frames) for frames in (start, end)]
    if sum(count) > length:
        raise ValueError(f"start_image has {count[0]} and end_image {count[1]} frames, the clip only {length} (length).")
    # 1, 5, 9 ... frames fill the latents of a clip's start, 4, 8, 12 ... those of its end.
    filled = [1 + -(-(count[0] - 1) // FRAMES) * FRAMES if count[0] else 0, -(-count[1] // FRAMES) * FRAMES]
    if sum(filled) >= length:
        raise ValueError(f"start_image has {count[0]} and end_image {count[1]} frames, which leave no latent of four frames "
                         f"in a clip of {length} to be drawn: set length to {sum(filled) + FRAMES}, or give fewer frames.")
    for name, given, whole, held, counts in (("start_image", count[0], filled[0], "last", "1, 5, 9"),
                                             ("end_image", count[1], filled[1], "first", "4, 8, 12")):
        if given != whole:
            logging.warning("%s: %d frame%s in latents of four frames, so that the %s one is shown for %d more; %s ... fit "
                            "exactly", name, given, "s" * (given > 1), held, whole - given, counts)
    some = start if start is not None else end
    clip, drawn = some.new_zeros(length, *some.shape[1:]), some.new_ones(length, *some.shape[1:3])
    if start is not None:
        clip[:filled[0]] = torch.cat([start, start[-1:].expand(filled[0] - count[0], -1, -1, -1)])
        drawn[:filled[0]] = 0.0
    if end is not None:
        clip[length - filled[1]:] = torch.cat([end[:1].expand(filled[1] - count[1], -1, -1, -1), end])
        drawn[length - filled[1]:] = 0.0
    return clip, drawn


def in_any_frame(mask):
    """Mask (4 n + 1, H, W) -> the same: 1 in all four frames of a latent where it is 1 in any of them."""
    later = mask[1:].unflatten(0, (-1, FRAMES)).amax(1, keepdim=True).expand(-1, FRAMES, -1, -1).flatten(0, 1)
    return torch.cat([mask[:1], later])


def noised(pictures, sigma: float, seed: int):
    """Pictures (N, H, W, 3) in [0, 1] with normal noise; sigma is meant for pixels in [-1, 1]."""
    if sigma <= 0.0:
        return pictures
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(seed))
    return pictures + noise.to(pictures) * (sigma / 2.0)


def encoded(vae, frames):
    """Frames (4 n + 1, H, W, 3) -> unscaled latent (1, 16, n + 1, H / 8, W / 8). Raises ValueError for a VAE that gives
    something else."""
    # A clip only goes to Fun models, which were trained on clips in chunks.
    latent = vae.encode(frames, clips="chunks") if isinstance(vae, CogVideoXVAE) else vae.encode(frames)
    expected = (1, LATENT_CHANNELS, (frames.shape[0] - 1) // 4 + 1, frames.shape[1] // 8, frames.shape[2] // 8)
    if tuple(latent.shape) != expected:
        raise ValueError(f"This VAE is another model's: {frames.shape[0]} frames became a latent of "
                         f"{' x '.join(map(str, latent.shape))}, CogVideoX's would be {' x '.join(map(str, expected))}. "
                         "Load one with Load CogVideoX VAE.")
    return latent


def to_latent_grid(mask, size):
    """Mask (4 n + 1, H, W), the same in the four frames of a latent -> (1, 1, *size) with size (n + 1, h, w), smoothly; the
    first frame has a latent of its own, so it is scaled by itself. (As in CogVideoX-Fun's pipeline.)"""
    mask = mask[None, None]
    parts = [F.interpolate(mask[:, :, :1], (1, *size[1:]), mode="trilinear")]
    if size[0] > 1:
        parts.append(F.interpolate(mask[:, :, 1:], (size[0] - 1, *size[1:]), mode="trilinear"))
    return torch.cat(parts, dim=2)
