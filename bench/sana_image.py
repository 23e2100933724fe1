"""Whole pictures, from the text's states to pixels: all steps of the sampler, then the decode; ours beside diffusers' networks.

Both sides are sampled by the same code, sana_core/sampling.py, so what differs is what the networks take. Text states are at
hand, as they are when a prompt is used again.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..sana_core.sampling import flow_sigmas, sample_flow_dpm_solver, sample_scm, sprint_sigmas
from ..sana_core.transformer import whole
from . import sana, sides
from .harness import Case

STEPS, CFG = 20, 4.5
# Each step hands its rounding on to the next one, guidance and the autoencoder enlarge it.
LIMITS = {dtype: 5 * limit for dtype, limit in sides.LIMITS.items()}


def networks(params, device, dtype, compiled):
    """[(transformer, decode, read)] of ours and of the baseline; compiled: the transformer's blocks and the decoder.

    read(context, mask): arguments of the transformer that it needs but once a picture; the baseline has none. On a CPU DC-AE
    computes in fp32, which it is faster in. And the baseline's blocks, for sides.compile_blocks.
    """
    transformers = sana.transformers(params, device, dtype)
    autoencoders = sana.autoencoders(device, torch.float32 if device == "cpu" else dtype)
    stacks = [transformers[1].transformer_blocks, [autoencoders[1].decoder]] * sides.DIFFUSERS
    kind = next(autoencoders[0].parameters()).dtype
    if compiled:
        count = 1 + sides.DIFFUSERS
        sides.compile_blocks([model.transformer_blocks for model in transformers[:count]])
        sides.compile_blocks([[model.decoder] for model in autoencoders[:count]])
    (ours, baseline), (ours_decode, decode) = transformers, (in_type(model.decode, kind) for model in autoencoders)
    if sides.DIFFUSERS:
        theirs = baseline

        def baseline(x, timestep, context, mask, guidance=None):
            return theirs(x, encoder_hidden_states=context, timestep=timestep, encoder_attention_mask=mask, return_dict=False,
                          guidance=None if guidance is None else guidance * params.guidance_embeds_scale)[0]
        decode = in_type(sides.first(autoencoders[1].decode), kind)

    def read(context, mask):
        return {"text": ours.with_pairs(ours.embed_text(context, mask, trim=not compiled))}
    return [(ours, ours_decode, read), (baseline, decode, lambda context, mask: {})], stacks


def in_type(call, dtype):
    return lambda x: call(x.to(dtype))


def picture(size, pixels, device="cpu", dtype=torch.float32, sets=1, steps=STEPS, compiled=False):
    """Text to image with guidance, `steps` steps of Flow-DPM-Solver++ -> Case; inputs as for sana.step."""
    params = sana.SIZES[size]
    sigmas = flow_sigmas(steps, params.flow_shift)

    def call(transformer, decode, read):
        def run(x, _, context, mask):
            once = read(context, mask)

            def denoised(x, sigma):
                both = sigma.repeat(2)
                v, empty = transformer(torch.cat([x, x]), whole(both * params.timestep_multiplier), context, mask, **once).chunk(2)
                return x - sigma[:, None, None, None].to(x) * (empty + CFG * (v - empty))
            return decode(sample_flow_dpm_solver(denoised, x[:1], sigmas) / sana.LATENT_SCALE)
        return run

    both, stacks = networks(params, device, dtype, compiled)
    ours, baseline = (call(*side) for side in both)
    return Case(f"Sana {size} picture, {pixels} px, {steps} steps and decode" + ", compiled" * compiled, ours, baseline,
                sana.step_inputs(params, pixels, device, dtype, sets), LIMITS[dtype], stacks=stacks)


def sprint(size, pixels, device="cpu", dtype=torch.float32, sets=1, steps=1, compiled=False):
    """Text to image by Sprint in so many steps, without guidance's second batch row -> Case."""
    params = replace(sana.SIZES[size], qk_norm=True, guidance_embeds=True)
    sigmas = sprint_sigmas(steps)
    guidance = torch.full((1,), CFG, device=device)
    noise = torch.randn(1, params.in_channels, pixels // 32, pixels // 32, device=device).to(dtype)

    def call(transformer, decode, read):
        def run(x, _, context, mask):
            once = read(context[:1], mask[:1]) if steps > 1 else {}

            def denoised(x, sigma):
                v = transformer(x, sigma, context[:1], mask[:1], guidance=guidance, **once)
                return x - sigma[:, None, None, None].to(x) * v
            return decode(sample_scm(denoised, x[:1], sigmas, noise_sampler=lambda *_: noise) / sana.LATENT_SCALE)
        return run

    both, stacks = networks(params, device, dtype, compiled)
    ours, baseline = (call(*side) for side in both)
    return Case(f"Sana Sprint {size} picture, {pixels} px, {steps} step{'s' * (steps > 1)} and decode" + ", compiled" * compiled,
                ours, baseline, sana.step_inputs(params, pixels, device, dtype, sets), LIMITS[dtype], stacks=stacks)
