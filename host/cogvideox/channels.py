"""What stands behind the noisy latent on the channels of the models that take a picture or a video."""

from __future__ import annotations

import comfy.utils
import torch

from ...cogvideo_core.config import CONDITIONING, CogVideoParams

# What a model of each kind takes, and the node that makes it.
_TAKES = {
    "image": ("a start picture", "CogVideoX Image to Video"),
    "repeated_image": ("one start picture, which it is shown at every frame", "CogVideoX Image to Video without an end_image"),
    "control": ("a control video", "CogVideoX Fun Control"),
    "inpaint": ("a video and a mask", "CogVideoX Fun Inpaint"),
    "void": ("a quadmask and a video", "VOIDInpaintConditioning"),
}
GIVEN = "cogvideox_given"  # in a conditioning, beside its latent: what that is, one of these
_GIVEN = {
    "image": "a start picture",
    "images": "a start and an end picture",
    "control": "a control video",
    "inpaint": "a video and a mask",
}
_READS = {"image": ("image", "images"), "repeated_image": ("image",), "control": ("control",), "inpaint": ("inpaint",)}


def check_given(params: CogVideoParams, cond: dict) -> None:
    """Raise ValueError when a condition holds another kind of picture or video than the model was trained with: all
    kinds have the same shape, so that nothing but a bad video would show it. One of a node that does not say its kind
    passes."""
    given, kind = cond.get(GIVEN), params.conditioning
    if given is None or kind == "none" or given in _READS.get(kind, ()):
        return
    takes, node = _TAKES[kind]
    told = kind in ("inpaint", "void") or params.ofs_embed_dim or params.use_learned_positional_embeddings  # by tensors
    other = "" if told else (" Where the file was taken for another kind than it is (the log says which), set conditioning of "
                             "Load CogVideoX Model.")
    raise ValueError(f"This CogVideoX model takes {takes}, and was given {_GIVEN[given]}. Use {node}, or load another "
                     f"model.{other}")


def condition_channels(params: CogVideoParams, noise, latent=None, mask=None):
    """Channels (B, in_channels - 16, T, h, w) for noise (B, 16, T, h, w); None for a model that has none.

    latent: what the VAE gave, unscaled, (1 or B, 16, T, h, w), zeros where there is nothing; for VOID (.., 32, ..), the
    inverted quadmask's before the masked video's. mask (1 or B, 1, T, h, w), for inpainting: 1 where it is to be drawn.
    Without them the channels are zero, which the models know as "by the text alone".
    Raises ValueError for what the model cannot take, and for another size than the noise's.
    """
    kind = params.conditioning
    if kind == "none":
        if latent is not None or mask is not None:
            raise ValueError("This CogVideoX model goes by the text alone, and was given a picture or a video. Load an "
                             "image-to-video, Fun or VOID model, or connect the prompts directly.")
        return None
    if (mask is not None) != (kind == "inpaint" and latent is not None):
        takes, node = _TAKES[kind]
        raise ValueError(f"This CogVideoX model takes {takes}, and was given {_given(latent, mask)}. Use {node}, or load "
                         "another model.")
    if latent is None:
        return noise.new_zeros(noise.shape[0], CONDITIONING[kind], *noise.shape[2:])
    latent = _fitted(latent, noise, 32 if kind == "void" else 16, "picture or video")
    latent = latent * params.condition_scale
    if kind == "repeated_image":
        return latent[:, :, :1].expand_as(noise)
    if kind == "inpaint":
        # Fun is fed what is known, not what is to be drawn, times the latent's factor.
        known = (1.0 - _fitted(mask, noise, 1, "mask")) * params.scaling_factor
        return torch.cat([known, latent], dim=1)
    return latent


def _given(latent, mask):
    if latent is None:
        return "a mask alone"
    return "a picture or video without a mask" if mask is None else "a picture or video with a mask"


def _fitted(given, noise, channels, name):
    """`given` repeated to the noise's batch. Raises ValueError for another size."""
    expected = (channels, *noise.shape[2:])
    if given.ndim != 5 or tuple(given.shape[1:]) != expected or given.shape[0] == 0:
        raise ValueError(f"The latent of the given {name} is {' x '.join(map(str, given.shape))}, but batch x "
                         f"{' x '.join(map(str, expected))} (channels, frames, height, width) is needed: it was encoded by "
                         "another model's VAE, or for a video of another size or length than the latent that is sampled. "
                         "Use the latent of the same node.")
    return comfy.utils.repeat_to_batch_size(given.to(noise), noise.shape[0])
