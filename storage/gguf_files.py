"""GGUF files of the two text encoders, as llama.cpp writes and quantises them, read under transformers' names.

A quantised tensor is turned to bf16 as it is loaded: no layer of ComfyUI's computes with GGUF's blocks. Gemma's norms stand
there with 1 added to the weight, which is taken away again.
Needs the package gguf, imported when such a file is opened and not before.
Source: llama.cpp's tensor names and convert_hf_to_gguf.py's changes of values, for T5 and Gemma-2.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

_T5 = {
    "token_embd": "shared", "enc.output_norm": "encoder.final_layer_norm",
    "attn_norm": "layer.0.layer_norm", "attn_q": "layer.0.SelfAttention.q", "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v", "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias", "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0", "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
}
_GEMMA = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm",
    "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Architecture -> what a block's names begin with there, here, and the names in and outside the blocks.
_ENCODERS = {"t5": ("enc.blk.", "encoder.block.", _T5), "t5encoder": ("enc.blk.", "encoder.block.", _T5),
             "gemma2": ("blk.", "model.layers.", _GEMMA)}
_DAMAGED = (ValueError, IndexError, KeyError, TypeError, OSError, OverflowError, AttributeError)


def open_gguf(path: Path):
    """(shapes, dtypes, metadata, load) of a text encoder's file, by transformers' names; load() -> {name: tensor}.

    Raises ValueError without the package gguf, for another model's file and for a damaged one.
    """
    try:
        import gguf
    except ImportError:
        raise ValueError(f"{path}: a GGUF file, which the package gguf reads, and that is not installed. Install it in "
                         "ComfyUI's Python (pip install gguf), or take the model in safetensors.") from None

    def opened():
        try:
            reader = gguf.GGUFReader(path)
            field = reader.get_field("general.architecture")
            return bytes(field.parts[field.data[0]]).decode(), {tensor.name: tensor for tensor in reader.tensors}
        except _DAMAGED as error:
            raise ValueError(f"{path}: a damaged GGUF file ({error}). Get it again.") from None

    kind, tensors = opened()
    if kind not in _ENCODERS:
        raise ValueError(f"{path}: a GGUF file of {kind!r}. Of GGUF files this pack reads the text encoders T5 (t5, t5encoder) "
                         "and Gemma-2 (gemma2): take the model in safetensors.")
    if strange := [name for name in tensors if canonical_name(name, kind) is None]:
        raise ValueError(f"{path}: a GGUF file of {kind!r} with {strange[0]}, which no such text encoder has. T5 is read "
                         "without its decoder; take a file of the encoder alone.")
    most = max(tensors.values(), key=lambda tensor: tensor.n_elements, default=None)
    dtype = {"F32": torch.float32, "F16": torch.float16}.get(most and most.tensor_type.name, torch.bfloat16)

    def one_more(name):
        return kind == "gemma2" and name.endswith("norm.weight")

    def dtype_of(name):
        return torch.float32 if one_more(name) else dtype  # a weight near 0, which bf16 has no room for beside the 1

    def load():
        out = {}
        for name, tensor in opened()[1].items():
            numbers = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
            out[canonical_name(name, kind)] = (numbers - 1 if one_more(name) else numbers).to(dtype_of(name))
        return out

    return ({canonical_name(name, kind): tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in tensors.items()},
            {canonical_name(name, kind): dtype_of(name) for name in tensors}, {}, load)


def canonical_name(name: str, kind: str) -> str | None:
    """llama.cpp's name of a tensor -> transformers', None for one that the encoder does not have."""
    before, block, names = _ENCODERS[kind]
    match = re.fullmatch(rf"(?:{re.escape(before)}(\d+)\.)?(.+)\.weight", name)
    if match is None or match[2] not in names:
        return None
    return f"{block}{match[1]}.{names[match[2]]}.weight" if match[1] else f"{names[match[2]]}.weight"
