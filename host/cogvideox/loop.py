"""Clips that end where they begin (after Mobius, arXiv 2502.20307): before each step the latents are turned on along time,
in a circle, so that no place in it is a beginning, and the model joins the ends as it joins all others.

All latents of the circle hold four frames. The autoencoder wants something before them, and is given the circle's end.
"""

from __future__ import annotations

import torch
from comfy.patcher_extension import WrappersMP

from .continuation import params_of
from .model import FRAMES, MOTION
from .sampling import LATENT_CHANNELS, LOOP
from .vae import check_latent, decode_frames

HISTORY = 2  # latents that are decoded before the circle's first
_CIRCLES = ("none", "control")  # kinds of conditioning that a circle may have


def looping(model, shift: int):
    """MODEL whose clips are circles of latents. shift: latents by which they are turned on before each step, at least 1.

    Raises ValueError for models that are shown a picture or the ends of a clip, whose place is fixed.
    """
    params = params_of(model)
    if params.conditioning not in _CIRCLES:
        raise ValueError("CogVideoX Loop is for models that go by text or by a control video. This one is shown "
                         "pictures: with CogVideoX Fun Inpaint give a Fun InP model the same picture as start_image and as "
                         "end_image.")
    if shift < 1:
        raise ValueError(f"shift is {shift}: it must be at least 1, or the ends are never joined.")

    def around_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
        if control is not None or MOTION in transformer_options:
            raise ValueError("CogVideoX Loop does not go with a ControlNet or with Tora, whose frames are not turned with "
                             "the circle: take one of the two away, or a Fun Control model with a control video.")
        turn = shift * step_of(t, transformer_options.get("sample_sigmas")) % x.shape[2]
        turned = None if c_concat is None else c_concat.roll(-turn, 2)
        return executor(x.roll(-turn, 2), t, turned, c_crossattn, control, transformer_options, **kwargs).roll(turn, 2)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, LOOP, around_model)
    return patched


def step_of(sigma, sigmas) -> int:
    """Which step of sigmas (n,) a prediction at sigma (B,) belongs to: the last whose level is not below it. Samplers that
    ask twice in a step see one circle."""
    if sigmas is None:
        return 0
    return max(0, int((sigmas.to(sigma) >= sigma.flatten()[0] * (1.0 - 1e-5)).sum()) - 1)


def decode_circle(vae, samples, tile_width: int, tile_height: int, repeat_first: bool = False):
    """Latents (B, 16, T, h, w) of a circle -> IMAGE (B * 4 T, 8 h, 8 w, 3), clip after clip, of which each goes on with its
    own first frame. repeat_first: that frame again at the end of each. tile_width, tile_height, errors: as
    `decode_frames`."""
    check_latent(samples, LATENT_CHANNELS)
    length = samples.shape[2]
    before = torch.cat([samples] * -(-HISTORY // length), 2)[:, :, -HISTORY:]
    frames = decode_frames(vae, torch.cat([before, samples], 2), tile_width, tile_height)
    clips = frames.unflatten(0, (len(samples), -1))[:, -FRAMES * length:]
    if repeat_first:
        clips = torch.cat([clips, clips[:, :1]], 1)
    return clips.flatten(0, 1)
