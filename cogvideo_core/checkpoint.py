"""The layouts of CogVideoX files, to diffusers' names (canonical here) and back.

* "diffusers": as it is.
* "sat": THUDM's own files, `transformer/*/mp_rank_00_model_states.pt` and `vae/3d-vae.pt`: query, key and value in
  one matrix, both modulations of a block in one, the decoder's levels numbered from the output.
* "comfy": ComfyUI core's names; its VAE has diffusers' names.

Nothing is computed: results are views or stacks of what came in.
Source: key tables of the three programs.
"""

from __future__ import annotations

import re

import torch

from ..kernels.state_dict import check_state_dict
from .autoencoder import CogVideoVAE
from .config import Identity, is_flat_patch
from .lookalikes import strip_autoencoder_prefix, strip_prefix
from .transformer import CogVideoTransformer

# diffusers, SAT, ComfyUI core. {} is the number of a block; .weight and .bias follow.
_TRANSFORMER = (
    ("transformer_blocks.{}.attn1.to_out.0", "transformer.layers.{}.attention.dense", "blocks.{}.attn_out"),
    ("transformer_blocks.{}.attn1.norm_q", "mixins.adaln_layer.query_layernorm_list.{}", "blocks.{}.norm_q"),
    ("transformer_blocks.{}.attn1.norm_k", "mixins.adaln_layer.key_layernorm_list.{}", "blocks.{}.norm_k"),
    ("transformer_blocks.{}.norm1.norm", "transformer.layers.{}.input_layernorm", "blocks.{}.norm1.norm"),
    ("transformer_blocks.{}.norm2.norm", "transformer.layers.{}.post_attention_layernorm", "blocks.{}.norm2.norm"),
    ("transformer_blocks.{}.ff.net.0.proj", "transformer.layers.{}.mlp.dense_h_to_4h", "blocks.{}.ff_proj"),
    ("transformer_blocks.{}.ff.net.2", "transformer.layers.{}.mlp.dense_4h_to_h", "blocks.{}.ff_out"),
    ("patch_embed.proj", "mixins.patch_embed.proj", "patch_embed.proj"),
    ("patch_embed.text_proj", "mixins.patch_embed.text_proj", "patch_embed.text_proj"),
    ("time_embedding.linear_1", "time_embed.0", "time_embedding_linear_1"),
    ("time_embedding.linear_2", "time_embed.2", "time_embedding_linear_2"),
    ("ofs_embedding.linear_1", "ofs_embed.0", "ofs_embedding_linear_1"),
    ("ofs_embedding.linear_2", "ofs_embed.2", "ofs_embedding_linear_2"),
    ("norm_final", "transformer.final_layernorm", "norm_final"),
    ("norm_out.norm", "mixins.final_layer.norm_final", "norm_out.norm"),
    ("norm_out.linear", "mixins.final_layer.adaLN_modulation.1", "norm_out.linear"),
    ("proj_out", "mixins.final_layer.linear", "proj_out"),
)
# In SAT these are pieces of one tensor each: their number in it, and its name.
_PROJECTIONS = (
    ("transformer_blocks.{}.attn1.to_q", "blocks.{}.q"),
    ("transformer_blocks.{}.attn1.to_k", "blocks.{}.k"),
    ("transformer_blocks.{}.attn1.to_v", "blocks.{}.v"),
)
_MODULATIONS = (
    ("transformer_blocks.{}.norm1.linear", "blocks.{}.norm1.linear"),
    ("transformer_blocks.{}.norm2.linear", "blocks.{}.norm2.linear"),
)
# Layers that DiffSynth-Studio, whose LoRAs are about (ExVideo), calls otherwise than all of these.
_DIFFSYNTH = {
    "blocks.{}.attn1.to_q": "transformer_blocks.{}.attn1.to_q", "blocks.{}.attn1.to_k": "transformer_blocks.{}.attn1.to_k",
    "blocks.{}.attn1.to_v": "transformer_blocks.{}.attn1.to_v",
    "blocks.{}.attn1.to_out": "transformer_blocks.{}.attn1.to_out.0",
    "blocks.{}.ff.0": "transformer_blocks.{}.ff.net.0.proj", "blocks.{}.ff.2": "transformer_blocks.{}.ff.net.2",
    "time_embedder.timestep_embedder.0": "time_embedding.linear_1",
    "time_embedder.timestep_embedder.2": "time_embedding.linear_2",
    "context_embedder": "patch_embed.text_proj",
}
_QKV = "transformer.layers.{}.attention.query_key_value"
_ADALN = "mixins.adaln_layer.adaLN_modulations.{}.1"
_TABLE, _SAT_TABLE = "patch_embed.pos_embedding", "mixins.pos_embed.pos_embedding"

# What SAT files hold beside the weights: embeddings of the framework that CogVideoX never uses, computed tables.
_SAT_PATCH, _SAT_OUT = "mixins.patch_embed.proj.weight", "mixins.final_layer.linear.weight"
_SAT_EXTRA = re.compile(r"embed_tokens|word_embeddings|position_embedding|freqs_(sin|cos)$")


def to_canonical(state_dict: dict, layout: str) -> dict:
    """A transformer's tensors under diffusers' names. layout: as `identify` names it; a saver's prefix may be left on.

    Raises ValueError for a name that has no place, and for an unknown layout.
    """
    state_dict = strip_prefix(state_dict)
    if layout == "diffusers":
        return dict(state_dict)
    if layout == "comfy":
        names = {comfy: canonical for canonical, _, comfy in _TRANSFORMER}
        names |= {comfy: canonical for canonical, comfy in _PROJECTIONS + _MODULATIONS}
        return {key if key == _TABLE else _rename(key, names): value for key, value in state_dict.items()}
    _expect(layout, "sat")
    names, out = {sat: canonical for canonical, sat, _ in _TRANSFORMER}, {}
    patch, last = state_dict.get(_SAT_PATCH), state_dict.get(_SAT_OUT)
    if patch is not None and last is not None and is_flat_patch(patch.shape, last.shape):
        state_dict = state_dict | {_SAT_PATCH: patch.reshape(len(patch), -1, 2, 2)}
    for key, value in state_dict.items():
        if _SAT_EXTRA.search(key):
            continue
        module, number, leaf = _split(key)
        if key == _SAT_TABLE:
            # Under this name the text-to-video models keep the table that their sine-cosine code is computed to.
            if state_dict[_SAT_PATCH].shape[1] != 16:
                out[_TABLE] = value
        elif module == _QKV:
            for (canonical, _), piece in zip(_PROJECTIONS, value.chunk(3)):
                out[f"{canonical.format(number)}.{leaf}"] = piece
        elif module == _ADALN:
            for (canonical, _), piece in zip(_MODULATIONS, _swap_middle(value)):
                out[f"{canonical.format(number)}.{leaf}"] = piece
        else:
            out[_rename(key, names)] = value
    return out


def from_canonical(state_dict: dict, layout: str) -> dict:
    """The opposite of `to_canonical`: a transformer's tensors under the names of `layout`, without prefix."""
    if layout == "diffusers":
        return dict(state_dict)
    if layout == "comfy":
        names = {canonical: comfy for canonical, _, comfy in _TRANSFORMER}
        names |= {canonical: comfy for canonical, comfy in _PROJECTIONS + _MODULATIONS}
        return {key if key == _TABLE else _rename(key, names): value for key, value in state_dict.items()}
    _expect(layout, "sat")
    names, out = {canonical: sat for canonical, sat, _ in _TRANSFORMER}, {}
    pieces = {canonical: (_QKV, i, 3) for i, (canonical, _) in enumerate(_PROJECTIONS)}
    pieces |= {canonical: (_ADALN, i, 2) for i, (canonical, _) in enumerate(_MODULATIONS)}
    whole = {}
    for key, value in state_dict.items():
        module, number, leaf = _split(key)
        if key == _TABLE:
            out[_SAT_TABLE] = value
        elif module in pieces:
            target, i, count = pieces[module]
            whole.setdefault((target, number, leaf), [None] * count)[i] = value
        else:
            out[_rename(key, names)] = value
    for (target, number, leaf), parts in whole.items():
        if any(part is None for part in parts):
            raise ValueError(f"{target.format(number)}.{leaf} has {len(parts)} parts and not all of them are here.")
        # Both modulations hold video, then text; SAT's one holds both norms' video, then both norms' text.
        value = torch.cat(parts) if target == _QKV else torch.cat(_swap_middle(torch.cat(parts)))
        out[f"{target.format(number)}.{leaf}"] = value
    return out


def check_shapes(shapes: dict[str, tuple], identity: Identity, filename: str = "") -> None:
    """Raise ValueError, naming the keys, unless a file has exactly the tensors of the transformer it was identified as.

    shapes: {key: shape} of the file in its own layout. Nothing is allocated.
    """
    check_state_dict(shapes, lambda tensors: to_canonical(tensors, identity.layout),
                     lambda: CogVideoTransformer(identity.params, device="meta"), identity.variant, filename)


def check_autoencoder_shapes(shapes: dict[str, tuple], identity: Identity, filename: str = "") -> None:
    """The same for an autoencoder."""
    check_state_dict(shapes, lambda tensors: autoencoder_to_canonical(tensors, identity.layout),
                     lambda: CogVideoVAE(identity.params, device="meta"), identity.variant, filename)


def canonical_modules(name: str) -> tuple[str, ...]:
    """Canonical names of a layer that SAT, ComfyUI core or DiffSynth calls `name`: three for SAT's query, key and value,
    stacked along the rows there; () when neither has such a layer. (SAT's modulation is left out: its rows are not stacked.)"""
    module, number, _ = _split(name + ".")
    names = {sat: (canonical,) for canonical, sat, _ in _TRANSFORMER} | {comfy: (canonical,) for canonical, _, comfy in _TRANSFORMER}
    names |= {comfy: (canonical,) for canonical, comfy in _PROJECTIONS + _MODULATIONS}
    names |= {theirs: (canonical,) for theirs, canonical in _DIFFSYNTH.items()}
    names[_QKV] = tuple(canonical for canonical, _ in _PROJECTIONS)
    return tuple(part.format(number) for part in names.get(module, ()))


def autoencoder_to_canonical(state_dict: dict, layout: str) -> dict:
    """An autoencoder's tensors under diffusers' names, the discriminator's left out. layout "diffusers" or "sat"."""
    state_dict = strip_autoencoder_prefix(state_dict)
    state_dict = {key: value for key, value in state_dict.items() if not key.startswith("loss.")}
    if layout == "diffusers":
        return state_dict
    _expect(layout, "sat")
    last = _last_level(state_dict, r"decoder\.up\.(\d+)\.")
    return {_autoencoder_name(key, _SAT_TO_VAE, last): value for key, value in state_dict.items()}


def autoencoder_from_canonical(state_dict: dict, layout: str) -> dict:
    """The opposite of `autoencoder_to_canonical`."""
    if layout == "diffusers":
        return dict(state_dict)
    _expect(layout, "sat")
    last = _last_level(state_dict, r"decoder\.up_blocks\.(\d+)\.")
    return {_autoencoder_name(key, _VAE_TO_SAT, last): value for key, value in state_dict.items()}


# Regular expression -> replacement; the decoder's level is turned round by itself.
_SAT_TO_VAE = (
    (r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.up\.(\d+)\.block\.", r"decoder.up_blocks.\1.resnets."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
)
_VAE_TO_SAT = (
    (r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
    (r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    (r"^decoder\.up_blocks\.(\d+)\.resnets\.", r"decoder.up.\1.block."),
    (r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", r"decoder.up.\1.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)


def _autoencoder_name(key, rules, last):
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return re.sub(r"^(decoder\.up(?:_blocks)?\.)(\d+)", lambda match: f"{match[1]}{last - int(match[2])}", key)


def _last_level(state_dict, pattern):
    return max((int(match[1]) for key in state_dict if (match := re.match(pattern, key))), default=0)


def _swap_middle(modulation):
    """Four runs of rows a, b, c, d -> (a and c, b and d)."""
    a, b, c, d = modulation.chunk(4)
    return torch.cat([a, c]), torch.cat([b, d])


def _split(key):
    """"transformer_blocks.7.ff.net.2.weight" -> ("transformer_blocks.{}.ff.net.2", "7", "weight")."""
    module, _, leaf = key.rpartition(".")
    match = re.search(r"(?:transformer_blocks|layers|blocks|layernorm_list|adaLN_modulations)\.(\d+)(?=\.|$)", module)
    if match is None:
        return module, "", leaf
    return module[: match.start(1)] + "{}" + module[match.end(1) :], match[1], leaf


def _rename(key, names):
    module, number, leaf = _split(key)
    if module not in names:
        raise ValueError(f"{key}: a CogVideoX transformer has no such tensor.")
    return f"{names[module].format(number)}.{leaf}"


def _expect(layout, known):
    if layout != known:
        raise ValueError(f"{layout!r} is not a layout of CogVideoX files.")
