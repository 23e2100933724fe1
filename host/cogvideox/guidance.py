"""What nodes of the host put in place of a block's self-attention: perturbed attention (PAG), for example.

CogVideoX attends over text and video at once. Self-attention, "attn1" in the host's words, is here what the video's tokens
attend to; the text's rows go on to attend over both.
"""

from __future__ import annotations

import torch


def places_of_attn1(blocks: int) -> dict:
    """{key of a patch: block}: ("double_block", i), and a UNet's innermost block, ("middle", 0), which the stock
    PerturbedAttentionGuidance names. Nothing is published about which block suits CogVideoX: it is the middle one."""
    return {("double_block", i): i for i in range(blocks)} | {("middle", 0): blocks // 2}


def with_replaced_self_attention(hooks: dict, blocks: int, transformer_options) -> dict:
    """attention= and run_block= of `host_hooks`, with the patches of the host's kind "attn1" in them.

    patch(q, k, v, extra_options) -> (B, N, D), all of them the video's (B, N, D), N tokens in the order frame, row, column.
    """
    places = places_of_attn1(blocks)
    patches = {places[key]: patch for key, patch in transformer_options.get("patches_replace", {}).get("attn1", {}).items()
               if key in places}
    if not patches:
        return hooks
    running = {}

    def run_block(i, call, *tokens):
        def noted(x, context, vec):
            running.update(block=i, text=context.shape[1])
            return call(x, context, vec)
        return hooks["run_block"](i, noted, *tokens)

    def attention(q, k, v, heads, mask):
        i, text = running["block"], running["text"]
        if i not in patches:
            return hooks["attention"](q, k, v, heads, mask)
        options = {**transformer_options, "block_index": i, "n_heads": heads, "attn_precision": None}
        return torch.cat([hooks["attention"](q[:, :text], k, v, heads, mask),
                          patches[i](q[:, text:], k[:, text:], v[:, text:], options)], dim=1)

    return {"attention": attention, "run_block": run_block}
