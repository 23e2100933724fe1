"""What stock nodes give a CogVideoX model that it has no place for: said once a run, or refused where it cannot run."""

from __future__ import annotations

import logging

import comfy.model_sampling

from .guidance import places_of_attn1

KEY = "sanacog_idle"  # of a run's set of what has been said, in transformer_options
# Kinds of patches that something here calls, see host/blocks.py.
_CALLED = {"post_input", "double_block"}
_KNOWN = {  # kind of patch, or name in a conditioning -> who sets it
    "attn1_patch": "ToMe, hypernetworks", "attn1_output_patch": "ToMe, NAG",
    "attn2_patch": "hypernetworks", "input_block_patch": "Kohya Deep Shrink", "input_block_patch_after_skip":
    "Kohya Deep Shrink", "output_block_patch": "Kohya Deep Shrink", "rope_options": "ScaleROPE",
    "guidance": "FluxGuidance", "reference_latents": "ReferenceLatent", "unclip_conditioning": "unCLIPConditioning",
}
_OF_CONDITIONS = ("guidance", "reference_latents", "unclip_conditioning")


def before_sampling(guider) -> None:
    """Say what of a guider's conditions, windows and noise levels is another model's, and begin a run's set of what has been
    said.

    guider: with the conditions and options of this run. Raises ValueError for Self-Attention Guidance, which would end in
    an error of its own or do nothing.
    """
    options = guider.model_options.setdefault("transformer_options", {})
    if ("middle", 0, 0) in options.get("patches_replace", {}).get("attn1", {}):
        raise ValueError("Self-Attention Guidance blurs pictures by the attention of a UNet, and CogVideoX has neither. Take "
                         "the node out; Perturbed-Attention Guidance works.")
    windows = guider.model_options.get("context_handler")
    if windows is not None and windows.dim != 2:
        logging.warning("The context windows lie along dimension %d; the frames of a CogVideoX latent are dimension 2. Set dim "
                        "to 2.", windows.dim)
    options[KEY] = set()
    conditions = [cond for conds in guider.conds.values() for cond in conds]
    _say({name for name in _OF_CONDITIONS for cond in conditions if cond.get(name) is not None}, options[KEY])
    sampling = guider.model_patcher.get_model_object("model_sampling")
    if not isinstance(sampling, comfy.model_sampling.V_PREDICTION):
        logging.warning("CogVideoX predicts v, and a node has this model sampled as %s: the video will be broken. Take the "
                        "ModelSampling node out.", " and ".join(cls.__name__ for cls in type(sampling).__mro__[1:3]))


def while_sampling(transformer_options, control, blocks: int, said: set) -> None:
    """Say what of a step's patches, replaced parts and ControlNet residuals nothing here reads. said: the run's."""
    found = {kind for kind, patches in transformer_options.get("patches", {}).items() if patches and kind not in _CALLED}
    places = {"dit": {("double_block", i) for i in range(blocks)}, "attn1": places_of_attn1(blocks)}
    for kind, patches in transformer_options.get("patches_replace", {}).items():
        found |= {f"{kind} of {' '.join(map(str, key))}" for key in patches if key not in places.get(kind, ())}
    if transformer_options.get("rope_options"):
        found.add("rope_options")
    if control and not any(residual is not None for residual in control.get("input", [])[:blocks]):
        found.add("the ControlNet's residuals")
    _say(found, said)


def _say(found: set, said: set) -> None:
    new = sorted(found - said)
    said.update(new)
    if new:
        names = ", ".join(name + (f" (as of {_KNOWN[name]})" if name in _KNOWN else "") for name in new)
        logging.warning("CogVideoX has no place for %s: the node that set it does nothing.", names)
