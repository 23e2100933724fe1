"""Keep Structure: while a result is sampled, its attention also sees the source at the same noise level.

The source goes through the network beside the result, noised with the run's own noise; where that is an inverted one it is
about the way that the source took. In each self-attention the result's queries look at their own keys and values and at the
source's. For CogVideoX that is what its authors' inversion script does; Sana's linear attention sums over both alike.
"""

from __future__ import annotations

import functools

import torch
from comfy.patcher_extension import WrappersMP

from ...sana_core.config import SanaParams
from ...sana_core.transformer import linear_attention
from .inversion import Inversion

KEY = "sanacog_keep_structure"


def keep_structure(model, start: float, end: float):
    """MODEL whose sampling keeps the structure of the latent that it is given. start, end: the part of the sampling, 0 to 1,
    in which it does. Raises ValueError for a model of another pack."""
    params = getattr(model.model.model_config, "params", None)
    if params is None:
        raise ValueError("Keep Structure works on models of Load Sana Model and Load CogVideoX Model; this is another one.")
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, Structure(
        start, end, params.num_layers if isinstance(params, SanaParams) else 0).around_sampler)
    return patched


class Structure:
    """One sampling run's source, for the part of the run that was asked for."""

    def __init__(self, start: float, end: float, linear_blocks: int):
        self.start, self.end, self.linear_blocks = start, end, linear_blocks

    def around_sampler(self, executor, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *args, **kwargs):
        """The host's SAMPLER_SAMPLE wrapper: here noise and latent (B, ...) are at the model's scale, whatever is around."""
        if isinstance(executor.class_obj, Inversion):
            return executor(model_wrap, sigmas, extra_args, callback, noise, latent_image, *args, **kwargs)
        if latent_image is None or not latent_image.any():
            raise ValueError("Keep Structure keeps that of the latent which is sampled from, and this one is empty. Connect "
                             "the source, encoded by the model's VAE, to the sampler's latent_image.")
        sampling = model_wrap.inner_model.model_sampling
        first, last = (float(sampling.percent_to_sigma(share)) for share in (self.start, self.end))

        def around_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):
            sigma = t.flatten()[0]
            if not last <= float(sigma) <= first:
                return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
            if x.shape[1:] != latent_image.shape[1:] or len(x) % len(latent_image):
                raise ValueError("Keep Structure sees the whole source at once: it does not go with context windows or "
                                 "areas.")
            # To x first: the host may have spread the conditions over several devices.
            source = sampling.noise_scaling(sigma, noise.to(x.device, copy=True), latent_image.to(x.device), False).to(x)
            source = source.repeat(len(x) // len(source), *[1] * (x.ndim - 1))
            twice = {name: _twice(value, len(x)) for name, value in kwargs.items()}
            out = executor(torch.cat([x, source]), _twice(t, len(x)), _twice(c_concat, len(x)), _twice(c_crossattn, len(x)),
                           _twice(control, len(x)), seeing_both(transformer_options, self.linear_blocks),
                           **twice)
            return out[:len(x)]

        options = extra_args["model_options"]["transformer_options"]
        wrappers = {kind: dict(keyed) for kind, keyed in options.get("wrappers", {}).items()}
        wrappers.setdefault(WrappersMP.APPLY_MODEL, {})[KEY] = [around_model]
        extra_args["model_options"]["transformer_options"] = {**options, "wrappers": wrappers}
        return executor(model_wrap, sigmas, extra_args, callback, noise, latent_image, *args, **kwargs)


def _twice(value, batch: int):
    """What goes with a batch, once more for the sources behind it."""
    if isinstance(value, torch.Tensor):
        return torch.cat([value, value]) if value.ndim and value.shape[0] == batch else value
    if isinstance(value, dict):
        return {key: _twice(entry, batch) for key, entry in value.items()}
    if isinstance(value, list):
        return [_twice(entry, batch) for entry in value]
    return value


def seeing_both(transformer_options: dict, linear_blocks: int) -> dict:
    """transformer_options with which the first half of a batch attends to itself and to the second half, that to itself.

    linear_blocks: number of blocks with linear self-attention, whose other attention is to the text; 0 where all is softmax.
    """
    if not linear_blocks:
        before = transformer_options.get("optimized_attention_override")

        def softmax(original, q, k, v, heads, *args, **kwargs):
            call = original if before is None else functools.partial(before, original)
            return beside(lambda *qkv: call(*qkv, heads, *args, **kwargs), q, k, v)
        softmax.in_place_of = before  # for blocks.replaced_attention
        return {**transformer_options, "optimized_attention_override": softmax}

    replace = transformer_options.get("patches_replace", {})
    patches = dict(replace.get("attn1", {}))

    def linear(before):
        def patch(q, k, v, extra):
            attend = functools.partial(linear_attention, heads=extra["n_heads"]) if before is None else (
                lambda *qkv: before(*qkv, extra))
            return beside(attend, q, k, v)
        return patch
    for block in range(linear_blocks):
        patches["double_block", block] = linear(patches.get(("double_block", block)))
    return {**transformer_options, "patches_replace": {**replace, "attn1": patches}}


def beside(attend, q, k, v):
    """attend(q, k, v) of tokens (2 B, N, D), the first B with keys and values of the others behind their own."""
    half = len(q) // 2
    own, others = slice(half), slice(half, None)
    return torch.cat([attend(q[own], torch.cat([k[own], k[others]], 1), torch.cat([v[own], v[others]], 1)),
                      attend(q[others], k[others], v[others])])
