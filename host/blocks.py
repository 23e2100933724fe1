"""What stands around the transformer's blocks in the host: patches, replaced blocks, residuals of a ControlNet."""

from __future__ import annotations

import comfy.model_management as mm
from comfy.ldm.modules import attention as host_attention

from . import step_cache


PLAIN = "sanacog_plain_attention"       # in transformer_options: take PyTorch's own attention, whatever was chosen
OVERRIDE = "optimized_attention_override"  # the host's: a node's function in place of its own
OWN = ("attention_basic", "attention_pytorch", "attention_split", "attention_sub_quad")  # the host's, in full precision


def replaced_attention(transformer_options) -> str | None:
    """The name of what a node or an option of the host has put in place of its own attention; None for nothing."""
    function = transformer_options.get(OVERRIDE)
    while hasattr(function, "in_place_of"):  # the pack's own, around what was there
        function = function.in_place_of
    function = function or host_attention.optimized_attention
    if any(function is getattr(host_attention, name, None) for name in OWN):
        return None
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', type(function).__name__)}"


def fastest_attention(device):
    """The host's attention function. On a CPU it takes one by parts, which needs two to four times as long as PyTorch's own and
    saves no memory beside it; so that one, unless the host was told by an option which to take."""
    chosen = host_attention.optimized_attention
    if device.type == "cpu" and chosen is host_attention.attention_sub_quad and not mm.args.use_quad_cross_attention:
        return host_attention.attention_pytorch
    return chosen


def host_hooks(total_blocks: int, control, transformer_options, modulated=None) -> dict:
    """attention= and run_block= for the forward of a core's transformer, which hand its insides to the host's nodes.

    In the host's words every block is a "double_block" with the picture "img" (B, N, D), the text "txt" (B, T, D) and
    what modulates it, "vec"; patches of the kind "post_input" run before the first block. control["input"][i], if there,
    is added to the picture after block i. A node that returns no "txt" leaves the text as it was. modulated: for Step Cache.
    """
    replace = transformer_options.get("patches_replace", {}).get("dit", {})
    patches = transformer_options.get("patches", {})
    residuals = (control or {}).get("input", [])
    options = {**transformer_options, "total_blocks": total_blocks, "block_type": "double"}

    plain = transformer_options.get(PLAIN, False)

    def attention(q, k, v, heads, mask):
        if plain:
            return host_attention.attention_pytorch(q, k, v, heads, mask=mask)
        return fastest_attention(q.device)(q, k, v, heads, mask=mask, transformer_options=options)

    def run_block(i, call, x, context, vec):
        options["block_index"] = i

        def original(args):
            return dict(zip(("img", "txt"), call(args["img"], args["txt"], args["vec"])))

        state = {"img": x, "txt": context}
        if i == 0:
            for patch in patches.get("post_input", []):
                state |= patch({**state, "transformer_options": options})
        args = {"img": state["img"], "txt": state["txt"], "vec": vec, "pe": None, "transformer_options": options}
        block = replace.get(("double_block", i))
        state |= original(args) if block is None else block(args, {"original_block": original})
        for patch in patches.get("double_block", []):
            state |= patch({"img": state["img"], "txt": state["txt"], "x": state["img"], "block_index": i,
                            "transformer_options": options})
        x = state["img"]
        if i < len(residuals) and residuals[i] is not None:
            x = x + residuals[i].to(x.dtype)  # a ControlNet may compute in another type than its base
        return x, state["txt"]

    run = transformer_options.get(step_cache.KEY)
    if run is not None:
        run_block = run.around(run_block, total_blocks, modulated, options)
    return {"attention": attention, "run_block": run_block}
