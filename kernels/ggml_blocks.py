"""GGUF's simplest blocks, as ComfyUI-CogVideoXWrapper's "GGUF" files hold them: in safetensors, `<layer>.Q4_0_qweight`.

A row of K numbers is K / 32 blocks; in each stands a scale d, fp16 in two bytes, then

    Q4_0    16 bytes: byte j holds number j in its low half and number j + 16 in its high half, each as d * (half - 8)
    Q8_0    32 signed bytes: number j is d * byte j

Source: ggml's block_q4_0 and block_q8_0; the wrapper's key names. Also runs on the meta device.
"""

from __future__ import annotations

import torch

BLOCK = 32
_BYTES = {"Q4_0": 2 + BLOCK // 2, "Q8_0": 2 + BLOCK}
FORMATS = tuple(f"ggml_{kind}" for kind in _BYTES)  # our names of them in a layer's entry
_LEAVES = {f"{kind}_qweight": kind for kind in _BYTES}


def format_of(leaf: str) -> str | None:
    """Our format of a tensor whose name ends so ("Q4_0_qweight"), None for any other."""
    return f"ggml_{_LEAVES[leaf]}" if leaf in _LEAVES else None


def float_shape(leaf: str, shape: tuple) -> tuple | None:
    """(N, K) of the weight in a tensor of bytes of this shape; None where its rows are no whole blocks."""
    size = _BYTES[_LEAVES[leaf]]
    return None if len(shape) != 2 or shape[1] % size else (shape[0], shape[1] // size * BLOCK)


def dequantise_blocks(data: torch.Tensor, format: str) -> torch.Tensor:
    """uint8 (N, K / 32 * bytes a block) -> fp32 (N, K). format: of FORMATS."""
    kind = format.removeprefix("ggml_")
    scale, numbers = data.contiguous().unflatten(1, (-1, _BYTES[kind])).split([2, _BYTES[kind] - 2], dim=-1)
    if kind == "Q8_0":
        numbers = numbers.contiguous().view(torch.int8)
    else:
        numbers = torch.cat([numbers & 15, numbers >> 4], dim=-1).view(torch.int8) - 8
    return (numbers.float() * scale.contiguous().view(torch.float16).float()).flatten(1)
