"""Guidance beyond plain CFG, as patches of a MODEL: perturbed attention (PAG), and CFG in a part of the sampling only."""

from __future__ import annotations

import re
import uuid

import comfy.model_patcher
import comfy.samplers
from comfy.patcher_extension import WrappersMP

from ...sana_core.config import SanaParams

AUTO = "auto"
# A guider's scales at which only the positive prompt is left: CFGGuider's, DualCFGGuider's, PerpNegGuider's.
POSITIVE_ALONE = {"cfg": 1.0, "cfg1": 1.0, "cfg2": 1.0, "neg_scale": 0.0}


def default_pag_block(num_layers: int) -> int:
    """Block whose self-attention is perturbed: 8 of the 20 of Sana 1.6B, as its authors' configuration has it. For other
    depths nothing is published: the middle one."""
    return 8 if num_layers == 20 else num_layers // 2


def pag(model, scale: float, blocks: str = AUTO, start: float = 0.0, end: float = 1.0):
    """Sana MODEL whose sampling moves away from what it would draw with a weakened self-attention.

    In the given blocks attention is replaced by its values, p; guided = CFG's result + scale * (c - p), c the positive
    prompt's prediction. It costs one more evaluation of the positive prompt a step. blocks: AUTO or numbers from 0, with
    anything between them. start, end: the part of the sampling, 0 to 1, in which it acts.
    Source: arXiv 2403.17377. Raises ValueError for another model, and for blocks that it does not have.
    """
    params = getattr(model.model.model_config, "params", None)
    if not isinstance(params, SanaParams):
        raise ValueError("This is no Sana model. Load one with Load Sana Model, or take the stock Perturbed-Attention "
                         "Guidance for a model with a UNet.")
    chosen = _blocks(blocks, params.num_layers)

    def add(args):
        if not args["cond"] or not _within(args["model"].model_sampling, args["sigma"], start, end):
            return args["denoised"]
        options = args["model_options"].copy()
        for block in chosen:
            options = comfy.model_patcher.set_model_options_patch_replace(options, _values, "attn1", "double_block", block)
        # Caching nodes keep each condition's last prediction under its id: this one must not pass for the positive's.
        weakened = [{**cond, "uuid": uuid.uuid5(cond["uuid"], "pag")} for cond in args["cond"]]
        [weak] = comfy.samplers.calc_cond_batch(args["model"], [weakened], args["input"], args["sigma"], options)
        return args["denoised"] + scale * (args["cond_denoised"] - weak)

    patched = model.clone()
    if scale != 0.0:
        patched.set_model_sampler_post_cfg_function(add)
    return patched


def cfg_interval(model, start: float, end: float):
    """MODEL that is guided (CFG) from start to end, shares of the sampling, and before and after it follows the positive
    prompt alone, at half the cost. For every guider whose scales are named as in POSITIVE_ALONE.

    Source: arXiv 2404.07724; Sana's `interval_guidance`, which counts in sigmas.
    """
    def predict(executor, x, timestep, *args, **kwargs):
        guider = executor.class_obj
        if _within(guider.inner_model.model_sampling, timestep, start, end):
            return executor(x, timestep, *args, **kwargs)
        scales = {name: value for name, value in vars(guider).items() if name in POSITIVE_ALONE}
        try:
            vars(guider).update({name: POSITIVE_ALONE[name] for name in scales})
            return executor(x, timestep, *args, **kwargs)
        finally:
            vars(guider).update(scales)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "sanacog_cfg_interval", predict)
    return patched


def replaced_self_attention(num_layers: int, transformer_options) -> dict:
    """self_attention= for the forward of Sana's transformer: what nodes put in place of a block's self-attention.

    In the host's words "attn1" of ("double_block", i): patch(q, k, v, extra_options), all (B, N, D). The stock
    PerturbedAttentionGuidance names a UNet's innermost block, ("middle", 0): here that is PAG's default block.
    """
    patches = transformer_options.get("patches_replace", {}).get("attn1", {})
    places = {("double_block", i): i for i in range(num_layers)} | {("middle", 0): default_pag_block(num_layers)}

    def call(patch, i):
        return lambda q, k, v, heads: patch(q, k, v, {**transformer_options, "block_index": i, "n_heads": heads})

    return {places[key]: call(patch, places[key]) for key, patch in patches.items() if key in places}


def _values(q, k, v, extra_options):
    return v


def _blocks(text: str, num_layers: int) -> list[int]:
    if text.strip().lower() == AUTO:
        return [default_pag_block(num_layers)]
    found = [int(number) for number in re.findall(r"\d+", text)]
    if not found or max(found) >= num_layers:
        raise ValueError(f"blocks is {text!r}: give {AUTO}, or numbers of blocks such as 8 or 7, 8. This model has blocks 0 to "
                         f"{num_layers - 1}.")
    return found


def _within(sampling, sigma, start: float, end: float) -> bool:
    """Whether a step at sigma (B,) lies between the shares start and end of the sampling, both included."""
    return sampling.percent_to_sigma(end) <= float(sigma.flatten()[0]) <= sampling.percent_to_sigma(start)
