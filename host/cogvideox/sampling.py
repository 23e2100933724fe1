"""What is done around every sampling of a CogVideoX model: what it cannot take refused, and the first latent of 1.5 added.

The 1.5 models take latent frames in pairs, and were trained on clips whose first latent is thrown away. Users have an
odd number of latents, as the VAE makes them of 4 n + 1 frames: one is put in front here and taken off the result. It is
kept (kept.py) where the result is not finished, so that the next stage goes on with it.
"""

from __future__ import annotations

import logging

import comfy.model_management as mm
import comfy.sampler_helpers
import torch
from comfy.patcher_extension import WrappersMP, get_wrappers_with_key

from ...cogvideo_core.config import CogVideoParams
from ..editing.inversion import Inversion
from ..kept import Kept
from ..memory import check_fits
from . import idle
from .areas import fit_area
from .channels import check_given

LATENT_CHANNELS = 16
_FRONTS = Kept(64)
LOOP = "sanacog_cogvideox_loop"  # what the wrappers of loop.py are called
# Stock samplers that reckon with two predictions as if noise levels were evenly spaced: in the first step, from sigma 4518,
# the little by which the two differ is multiplied by the ratio of its ends. Which they are was measured
# (tests/host/cogvideox/test_stock_samplers.py), and at what ratio: 30 steps have 71 and show it, 50 have 42 and do not.
_BROKEN_BY_FIRST_STEP = {f"sample_{name}": name for name in ("heun", "dpm_2", "dpm_2_ancestral", "ipndm")}
_TOO_FAR = 45.0


def around_sampling(executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None,
                    disable_pbar=False, seed=None, **kwargs):
    """The host's OUTER_SAMPLE wrapper. noise, latent_image (B, 16, T, h, w)."""
    guider = executor.class_obj
    model = guider.model_patcher.model
    params = model.model_config.params
    conditions = [cond for conds in guider.conds.values() for cond in conds]  # copies of this run
    check_latent(noise, latent_image)
    check_size(noise.shape, guider.model_options.get("context_handler"), model, guider.model_patcher.load_device)
    front = -noise.shape[2] % (params.patch_size_t or 1)
    check_loop(guider.model_options, front)
    for cond in conditions:
        check_given(params, cond)
        fit_area(cond, noise.shape[2:], front)
    idle.before_sampling(guider)
    say_size(noise.shape, params)
    say_sampler(sampler, sigmas)
    if not front:
        return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **kwargs)

    if denoise_mask is not None:  # older hosts bring it to the latent's size only later
        denoise_mask = _repeated(comfy.sampler_helpers.prepare_mask(denoise_mask, noise.shape, noise.device))
    for cond in conditions:
        _pad_condition(cond, params)
    if "latent_shapes" in kwargs:
        kwargs["latent_shapes"] = [torch.Size([*noise.shape[:2], noise.shape[2] + front, *noise.shape[3:]])]
    inner = None
    if callback is not None:
        def inner(step, x0, x, total_steps):
            return callback(step, x0[:, :, front:], x[:, :, front:], total_steps)
    inverts = isinstance(sampler, Inversion)
    latent_image = torch.cat([latent_image[:, :, :1] if inverts else _front_latent(noise, latent_image), latent_image], dim=2)
    noise = torch.cat([front_noise(noise, seed), noise], dim=2)
    samples = executor(noise, latent_image, sampler, sigmas, denoise_mask, inner, disable_pbar, seed, **kwargs)
    clip = samples[:, :, front:]
    if inverts or len(sigmas) and sigmas[-1] > 0.0:
        _FRONTS.keep(clip, samples[:, :, :front])
    return clip


def _front_latent(noise, latent):
    """What goes before latent (B, 16, T, h, w): the state that an earlier stage left, where this run goes on from one (it
    adds no noise), and else a copy of the first."""
    if not noise.any() and latent.any():
        kept = _FRONTS.of(latent)
        if kept is not None:
            return kept
        logging.warning("CogVideoX 1.5: no noise is added, but this latent is not as an earlier stage left it in this "
                        "session, so that the state of the extra latent in front of it is lost. If it is a second stage, "
                        "its first frames differ a little from those of a run in one.")
    return latent[:, :, :1]


def front_noise(noise, seed: int | None):
    """Standard normal noise (B, 16, 1, h, w) to go before noise (B, 16, T, h, w): what stood there where an inversion gave the
    noise; none where that is none, as in the second of two stages."""
    shape = (*noise.shape[:2], 1, *noise.shape[3:])
    if not noise.any():
        return noise.new_zeros(shape)
    if (kept := _FRONTS.of(noise)) is not None:
        return kept
    # Not the seed itself: the host has drawn `noise` with it, and the numbers would be the same.
    generator = torch.Generator().manual_seed(((seed or 0) - 1) % 2**64)
    return torch.randn(shape, generator=generator).to(noise)


def _repeated(x):
    """x (B, C, T, h, w) with a copy of its first latent before it."""
    return torch.cat([x[:, :, :1], x], dim=2)


def _pad_condition(cond: dict, params: CogVideoParams) -> None:
    """The same for a condition's latent and mask, in place: a start picture belongs to the latent that is thrown away,
    and nothing to the one after it."""
    latent, mask = cond.get("concat_latent_image"), cond.get("concat_mask")
    if latent is not None and latent.ndim == 5:
        latent = _repeated(latent)
        if params.conditioning == "image":
            latent[:, :, 1:2] = 0.0
        cond["concat_latent_image"] = latent
    if mask is not None and mask.ndim == 5:
        cond["concat_mask"] = _repeated(mask)


def say_size(shape, params: CogVideoParams) -> None:
    """Log when a latent of `shape` (B, 16, T, h, w) is of another size than the one that a learned position table knows."""
    height, width = shape[3:]
    trained = params.sample_height, params.sample_width
    if params.use_learned_positional_embeddings and (height, width) != trained:
        logging.warning("This CogVideoX model was trained on videos of %d x %d px alone: its table of positions is stretched "
                        "to %d x %d, which draws worse. Take that size, or CogVideoX1.5-5B-I2V.",
                        8 * trained[1], 8 * trained[0], 8 * width, 8 * height)


def say_sampler(sampler, sigmas) -> None:
    """Log when a stock sampler cannot make CogVideoX's first step."""
    name = _BROKEN_BY_FIRST_STEP.get(getattr(getattr(sampler, "sampler_function", None), "__name__", ""))
    if name and len(sigmas) > 2 and sigmas[0] > _TOO_FAR * sigmas[1]:
        logging.warning("The first step of this run goes from noise level %.0f to %.0f, and %s cannot make it: the video may "
                        "be broken. Take 50 steps, or euler, dpmpp_2m or heunpp2.", float(sigmas[0]), float(sigmas[1]), name)


def check_latent(noise, latent) -> None:
    """Raise ValueError for a latent that CogVideoX cannot sample."""
    shape = tuple(noise.shape)
    if len(shape) != 5 or shape[1] != LATENT_CHANNELS:
        raise ValueError(f"This latent is of another model: it is {' x '.join(map(str, shape))}, CogVideoX's are batch x "
                         f"{LATENT_CHANNELS} x (frames + 3) / 4 x height / 8 x width / 8. Make it with Empty CogVideoX "
                         "Latent, or encode the video with a VAE from Load CogVideoX VAE.")
    if 0 in shape:
        raise ValueError(f"This latent is empty: {' x '.join(map(str, shape))}. Batch, frames and sides must be at least 1.")
    if latent is not None and not latent.isfinite().all():
        raise ValueError("This latent holds NaN or infinite numbers, from an earlier node: sampling it would give a "
                         "broken video.")


def check_loop(model_options: dict, front: int) -> None:
    """Raise ValueError for a loop that would not be whole: with a latent put in front, or in windows."""
    if not get_wrappers_with_key(WrappersMP.APPLY_MODEL, LOOP, model_options, is_model_options=True):
        return
    if front:
        raise ValueError("CogVideoX Loop turns the clip in a circle, and CogVideoX 1.5 takes latents in pairs: this clip "
                         "has an odd number of them. Set length to 8 n + 5, such as 77 or 85.")
    if model_options.get("context_handler") is not None:
        raise ValueError("CogVideoX Loop sees the whole clip at once: it does not go with context windows. Take one of "
                         "the two away.")


def check_size(shape, context_handler, model, device) -> None:
    """Raise ValueError when the activations of a latent of `shape` (B, 16, T, h, w) are more than the device's memory."""
    batch, _, frames, height, width = shape
    at_once = frames
    if context_handler is not None and context_handler.dim == 2:
        at_once = min(frames, context_handler.context_length + 1)  # with a frame before the window, on newer hosts
    # Not model.memory_required: without fused attention the host adds a margin that a fitting request may do without.
    numbers = batch * at_once * height * width * model.memory_usage_factor * 0.01 * 1024**2
    check_fits(int(numbers * mm.dtype_size(model.manual_cast_dtype or model.get_dtype())), device,
               f"Sampling {batch} x {4 * frames - 3} frames of {8 * width} x {8 * height} px",
               "Make the video shorter or smaller, or use context windows.")
