"""Layouts of the Sana transformer's weights: diffusers, NVlabs, and the canonical one that SanaTransformer loads.

Canonical is diffusers' naming with the feed-forward network's 1x1 convolutions as matrices (out, in).
NVlabs' files have fused qkv and kv. Every map is a table that runs both ways.
"""

from __future__ import annotations

import re

import torch

from ..kernels.state_dict import check_state_dict, some
from .config import Identity
from .lookalikes import strip_prefix
from .transformer import SanaTransformer

# NVlabs name -> canonical names, of which more than one are stacked along dim 0 there.
BLOCK = {
    "scale_shift_table": ("scale_shift_table",),
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "attn.q_norm": ("attn1.norm_q",),
    "attn.k_norm": ("attn1.norm_k",),
    "cross_attn.q_linear": ("attn2.to_q",),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.proj": ("attn2.to_out.0",),
    "cross_attn.q_norm": ("attn2.norm_q",),
    "cross_attn.k_norm": ("attn2.norm_k",),
    "mlp.inverted_conv.conv": ("ff.conv_inverted",),
    "mlp.depth_conv.conv": ("ff.conv_depth",),
    "mlp.point_conv.conv": ("ff.conv_point",),
}
OUTSIDE = {
    "x_embedder.proj": ("patch_embed.proj",),
    "y_embedder.y_proj.fc1": ("caption_projection.linear_1",),
    "y_embedder.y_proj.fc2": ("caption_projection.linear_2",),
    "attention_y_norm": ("caption_norm",),
    "t_embedder.mlp.0": ("time_embed.emb.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_embed.emb.timestep_embedder.linear_2",),
    "t_block.1": ("time_embed.linear",),
    "final_layer.scale_shift_table": ("scale_shift_table",),
    "final_layer.linear": ("proj_out",),
}
_OUTSIDE_SPRINT = OUTSIDE | {
    "t_embedder.mlp.0": ("time_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_embed.timestep_embedder.linear_2",),
    "cfg_embedder.mlp.0": ("time_embed.guidance_embedder.linear_1",),
    "cfg_embedder.mlp.2": ("time_embed.guidance_embedder.linear_2",),
}
# Left over from training: the null caption (any encoded "" replaces it), a position table that is computed, the loss
# weights of Sprint's distillation; and the ControlNet that shares a file with its base. Accepted and dropped.
_LEFT_OVER = re.compile(r"(y_embedder\.y_embedding|(patch_embed\.)?pos_embed|logvar_linear\.(weight|bias)|controlnet\.\d.*)")
_CONV_1X1 = re.compile(r"transformer_blocks\.\d+\.ff\.conv_(inverted|point)\.weight")


def to_canonical(state_dict: dict, layout: str) -> dict:
    """Any layout -> canonical. layout: "diffusers" or "nvlabs" (Identity.layout).

    A saver's prefix and the left-overs of training go. Tensors are views where they can be, of any dtype or device,
    meta too. Raises ValueError naming the keys that have no place in a Sana transformer of NVlabs' layout; missing
    keys are found by check_shapes.
    """
    state_dict = {key: t for key, t in strip_prefix(state_dict).items() if not _LEFT_OVER.fullmatch(key)}
    if layout == "nvlabs":
        outside = _OUTSIDE_SPRINT if "cfg_embedder.mlp.0.weight" in state_dict else OUTSIDE
        state_dict = split(state_dict, BLOCK, outside)
    elif layout != "diffusers":
        raise ValueError(f'unknown layout "{layout}" of a Sana transformer, expected "diffusers" or "nvlabs"')
    # Some savers write matrices already; four dimensions are what the released files have.
    return {key: t.flatten(1) if _CONV_1X1.fullmatch(key) and t.ndim > 1 else t for key, t in state_dict.items()}


def from_canonical(state_dict: dict, layout: str) -> dict:
    """Canonical -> "diffusers" or "nvlabs": the exact inverse of to_canonical on a released file's own keys."""
    state_dict = {key: t[:, :, None, None] if _CONV_1X1.fullmatch(key) else t for key, t in state_dict.items()}
    if layout == "diffusers":
        return state_dict
    if layout != "nvlabs":
        raise ValueError(f'unknown layout "{layout}" of a Sana transformer, expected "diffusers" or "nvlabs"')
    sprint = "time_embed.guidance_embedder.linear_1.weight" in state_dict
    return fuse(state_dict, BLOCK, _OUTSIDE_SPRINT if sprint else OUTSIDE)


def check_shapes(shapes: dict[str, tuple], identity: Identity, filename: str = "") -> None:
    """Raise ValueError, naming the keys, unless a file has exactly the tensors of the model it was identified as.

    shapes: {key: shape} of the file in its own layout. Nothing is allocated.
    """
    check_state_dict(shapes, lambda tensors: to_canonical(tensors, identity.layout),
                     lambda: SanaTransformer(identity.params, device="meta"), identity.variant, filename)


def canonical_modules(name: str) -> tuple[str, ...]:
    """Canonical names of a layer that NVlabs calls `name`: several, stacked along the rows there, for a fused projection;
    () when it has no such layer. The embedders, which Sprint names otherwise, are those of the other models."""
    number, module, _ = split_key(name + ".", "blocks")
    names = BLOCK.get(module, ()) if number else OUTSIDE.get(module, ()) or _OUTSIDE_SPRINT.get(module, ())
    return tuple(f"transformer_blocks.{number}{part}" if number else part for part in names)


def nvlabs_module(name: str) -> tuple[str, tuple[str, ...]] | None:
    """(what NVlabs call the layer that is canonically `name`, canonical names of all that is stacked in it), None when it has
    no place there."""
    number, module, _ = split_key(name + ".", "transformer_blocks")
    prefix = (f"blocks.{number}", f"transformer_blocks.{number}") if number else ("", "")
    for table in (BLOCK,) if number else (OUTSIDE, _OUTSIDE_SPRINT):
        for theirs, ours in table.items():
            if module in ours:
                return prefix[0] + theirs, tuple(prefix[1] + part for part in ours)
    return None


def split_key(key, blocks):
    """"blocks.3.attn.qkv.weight" -> ("3.", "attn.qkv", ".weight"); the first is empty outside the blocks."""
    match = re.match(rf"{blocks}\.(\d+\.)", key)
    number, rest = (match[1], key[match.end():]) if match else ("", key)
    if rest.endswith("scale_shift_table"):
        return number, rest, ""
    module, dot, leaf = rest.rpartition(".")
    return number, module, dot + leaf


def split(state_dict, block, outside):
    """NVlabs' names -> canonical ones, stacked projections cut. block, outside: tables as BLOCK and OUTSIDE. Raises ValueError
    naming the keys that have no place in them."""
    out, unknown = {}, []
    for key, t in state_dict.items():
        number, module, leaf = split_key(key, "blocks")
        names = (block if number else outside).get(module, ())
        if not names or (len(names) > 1 and t.shape[0] % len(names)):
            unknown.append(key)
            continue
        prefix = f"transformer_blocks.{number}" if number else ""
        parts = t.chunk(len(names)) if len(names) > 1 else (t,)
        out |= {prefix + name + leaf: part for name, part in zip(names, parts)}
    if unknown:
        raise ValueError(f"no Sana transformer of this layout has {some(unknown)}")
    return out


def _inverse(table):
    """canonical name -> (NVlabs name, place in the stack, height of the stack)"""
    return {name: (stacked, place, len(names)) for stacked, names in table.items() for place, name in enumerate(names)}


def fuse(state_dict, block, outside):
    """Canonical names -> NVlabs', projections stacked: the inverse of split."""
    block, outside = _inverse(block), _inverse(outside)
    stacks, unknown = {}, []
    for key, t in state_dict.items():
        number, module, leaf = split_key(key, "transformer_blocks")
        target = (block if number else outside).get(module)
        if target is None:
            unknown.append(key)
            continue
        stacked, place, height = target
        prefix = f"blocks.{number}" if number else ""
        stacks.setdefault(prefix + stacked + leaf, [None] * height)[place] = t
    unknown += [key for key, stack in stacks.items() if any(t is None for t in stack)]
    if unknown:
        raise ValueError(f"not a whole Sana transformer: {some(unknown)}")
    return {key: torch.cat(stack) if len(stack) > 1 else stack[0] for key, stack in stacks.items()}
