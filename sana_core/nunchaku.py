"""Sana transformers that Nunchaku quantised to 4 bits (SVDQuant, int4), turned back to matrices of 16 bits.

Of each layer (N, K), both sides filled up to multiples of 128, a file holds

    qweight, wscales        numbers -8 ... 7, and a scale for 64 of them in a row
    smooth                  what the inputs are divided by
    lora_down, lora_up      a branch of low rank beside it, on the inputs as they are
    bias

so that the matrix is  qweight * wscales / smooth + lora_up lora_down^T.  All of these lie in the order in which a GPU's
tensor cores read them. The rows of attn.qkv_proj are the queries, then for each head of 32 its keys and its values; those of
ff.inverted_conv, and the channels of ff.depth_conv, are value and gate by turns. In memory the result is as large as bf16.
Source: nunchaku's SanaModel.cpp and kernels/zgemm, which read it; deepcompressor's backend/nunchaku, which writes it.
"""

from __future__ import annotations

import re

import torch

HEAD = 32        # of the linear attention, which the kernels know no other of
GROUP = 64       # numbers with a scale of their own
TILE = 128       # what sides are filled up to
MLP_RATIO = 2.5  # of every Sana: the hidden channels that files fill up to a multiple of 64
FILES = ("transformer_blocks.safetensors", "unquantized_layers.safetensors")  # of the older form

_QUANTISED = {"attn.qkv_proj": ("attn1.to_q", "attn1.to_k", "attn1.to_v"), "attn.out_proj": ("attn1.to_out.0",),
              "cross_attn.q_linear": ("attn2.to_q",), "cross_attn.out_proj": ("attn2.to_out.0",),
              "ff.inverted_conv": ("ff.conv_inverted",), "ff.point_conv": ("ff.conv_point",)}
_BIASED = ("attn.out_proj", "cross_attn.q_linear", "cross_attn.out_proj", "ff.inverted_conv")  # in diffusers' layout
_LEAVES = ("qweight", "wscales", "smooth", "lora_down", "lora_up", "bias")
_IGNORED = ("smooth_orig",)  # what deepcompressor writes for itself
_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)\.(\w+)$")
_PAG = "attn.pag_to_v"  # the values once more, quantised for themselves


def is_packed(shapes) -> bool:
    """Whether these are the names of such a file, or of the half that holds its blocks."""
    return any(key.startswith("transformer_blocks.") and key.endswith("ff.inverted_conv.qweight") for key in shapes)


def diffusers_shapes(shapes: dict[str, tuple], dtypes: dict) -> dict[str, tuple]:
    """{diffusers' key: shape} of the file turned back. dtypes: by the file's keys.

    Raises ValueError for the other number format (fp4), for the blocks without the rest, and for shapes that are none.
    """
    if any(key.endswith((".wtscale", ".wcscales")) or (key.endswith(".wscales") and dtypes[key].itemsize == 1)
           for key in shapes):
        raise ValueError("a Sana transformer in Nunchaku's fp4, of which this pack reads int4 alone. Take the int4 file "
                         "(svdq-int4-...), or the one that it was made from.")
    if "patch_embed.proj.weight" not in shapes:
        raise ValueError(f"the blocks of a Sana transformer in Nunchaku's int4, without what is around them: put "
                         f"{' and '.join(FILES)} into one folder, with their config.json, and choose that.")
    try:
        return {key: tuple(t.shape) for key, t in to_diffusers(
            {key: torch.empty(shape, dtype=dtypes[key], device="meta") for key, shape in shapes.items()}).items()}
    except (RuntimeError, KeyError, IndexError, ValueError) as error:
        raise ValueError(f"a damaged Sana transformer in Nunchaku's int4 ({error}). Get the file again.") from None


def to_diffusers(tensors: dict) -> dict:
    """The file's tensors -> diffusers' names and shapes; what was quantised in bf16, the rest as it is. On any device, meta
    too. Raises ValueError for a name that has no place, KeyError for a part that is missing."""
    D = tensors["patch_embed.proj.weight"].shape[0]
    hidden, out = int(MLP_RATIO * D), {}
    for key, tensor in tensors.items():
        match = _BLOCK.fullmatch(key)
        number, layer, leaf = match.groups() if match else ("", "", "")
        block = f"transformer_blocks.{number}."
        if layer == _PAG or leaf in _IGNORED:
            continue
        if layer in _QUANTISED:
            if leaf == "qweight":
                of_layer = {one: tensors[f"{block}{layer}.{one}"] for one in _LEAVES if f"{block}{layer}.{one}" in tensors}
                out |= {block + name: t for name, t in _layer(layer, of_layer, D, hidden).items()}
            elif leaf not in _LEAVES:
                raise ValueError(f"no Sana transformer of Nunchaku's has {key}")
        elif layer == "cross_attn.kv_linear":
            for name, part in zip(("attn2.to_k", "attn2.to_v"), tensor.chunk(2)):
                out[f"{block}{name}.{leaf}"] = part
        elif layer == "ff.depth_conv":
            channels = _halves(tensor, hidden)
            out[f"{block}ff.conv_depth.{leaf}"] = channels.permute(0, 3, 1, 2) if leaf == "weight" else channels
        elif match:
            raise ValueError(f"no Sana transformer of Nunchaku's has {key}")
        else:
            out[key] = tensor
    return out


def _layer(layer: str, parts: dict, D: int, hidden: int) -> dict:
    """{diffusers' name behind the block: tensor} of one quantised layer."""
    weight, names = unpacked_weight(parts), _QUANTISED[layer]
    bias = unpacked_vector(parts["bias"]) if "bias" in parts else torch.zeros(len(weight), device=weight.device)
    if layer == "attn.qkv_proj":
        return {f"{name}.weight": part.bfloat16() for name, part in zip(names, _query_key_value(weight[:, :D], D))}
    if layer == "ff.inverted_conv":
        weight, bias = _halves(weight[:, :D], hidden), _halves(bias, hidden)
    elif layer == "ff.point_conv":
        if not weight.is_meta and weight[:D, hidden:].any():
            raise ValueError(f"its hidden channels beyond {hidden} are not empty")
        weight = weight[:D, :hidden]
    else:
        weight, bias = weight[:D, :D], bias[:D]
    if layer.startswith("ff."):
        weight = weight[:, :, None, None]
    out = {f"{names[0]}.weight": weight.bfloat16().contiguous()}
    return out | ({f"{names[0]}.bias": bias.bfloat16()} if layer in _BIASED else {})


def _query_key_value(rows: torch.Tensor, D: int):
    """Rows (3 P, K), P of D filled up: queries, then keys and values head by head -> three of (D, K)."""
    P = len(rows) // 3
    pairs = rows[P:].unflatten(0, (-1, 2, HEAD))
    return rows[:D], pairs[:, 0].flatten(0, 1)[:D].contiguous(), pairs[:, 1].flatten(0, 1)[:D].contiguous()


def _halves(rows: torch.Tensor, hidden: int) -> torch.Tensor:
    """Rows that are value and gate by turns, filled up behind -> `hidden` values, then as many gates."""
    return rows.unflatten(0, (-1, 2))[:hidden].transpose(0, 1).flatten(0, 1).contiguous()


def unpacked_weight(parts: dict) -> torch.Tensor:
    """The matrix (N, K) of a layer in fp32, filled up as in the file. parts: {leaf: tensor}, without the bias."""
    packed = parts["qweight"]
    N, K = packed.shape[0], 2 * packed.shape[1]
    # In tiles of 128 rows and 64 columns, eight numbers of 4 bits in an int32, the lowest first. By rows: 8 packs, 2, 8
    # lanes; by columns: 2, 4 lanes, 8 numbers. They lie as pack, lane of rows, lane of columns, row's 2, column's 2, number.
    codes = packed.contiguous().view(torch.uint8).flatten()
    codes = torch.stack([codes & 15, codes >> 4], dim=-1)
    codes = codes.reshape(N // TILE, K // GROUP, 8, 8, 4, 2, 2, 8).permute(0, 2, 5, 3, 1, 6, 4, 7)
    numbers = (codes.reshape(N, K).view(torch.int8) ^ 8) - 8  # two's complement of 4 bits
    # Those of 128 rows together, column by column, whatever the shape says.
    scales = unpacked_vector(parts["wscales"]).reshape(N // TILE, K // GROUP, TILE).transpose(1, 2).flatten(0, 1)
    weight = (numbers.float().unflatten(1, (-1, GROUP)) * scales[..., None]).flatten(1) / unpacked_vector(parts["smooth"])
    if "lora_up" not in parts:
        return weight
    # Tiles of 16 x 16, the inner order as above with two numbers to a lane: down (K, R), up (N, R).
    return weight + _branch(parts["lora_up"]) @ _branch(parts["lora_down"], down=True).T


def unpacked_vector(packed: torch.Tensor) -> torch.Tensor:
    """Scales, smoothing factors or a bias of 16 bits -> fp32 in their order. In 128: 8 times 16, these as 4 lanes, 2, 2."""
    return packed.float().reshape(-1, 8, 4, 2, 2).permute(0, 1, 3, 2, 4).flatten()


def _branch(packed: torch.Tensor, down: bool = False) -> torch.Tensor:
    """A low-rank matrix (C, R) in fp32. Its tiles are 16 rows of its own by 16 columns; those of `down` are transposed."""
    C, R = packed.shape
    tiles = packed.float().reshape(C // 16, R // 16, 8, 4, 2, 2, 2).permute(0, 1, 4, 2, 5, 3, 6)
    tiles = tiles.reshape(C // 16, R // 16, 16, 16)
    tiles = tiles.transpose(2, 3) if down else tiles
    return tiles.transpose(1, 2).reshape(C, R)
