"""LoRA files in other programs' names. A change is one layer's: A (rank, in), B (out, rank), and the scale of B A.

SAT's own mixin computes alpha / rank with alpha 1, and has a place for attention's four projections alone: a file for it
holds B * scale * rank. Source: facts/training.md 2.4.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from .adapter_files import CONVOLUTIONS, PREFIX, peft_metadata

# Our name of a projection -> where SAT keeps its pair.
SAT_PLACES = {"attn1.to_q": ("query_key_value", 0), "attn1.to_k": ("query_key_value", 1), "attn1.to_v": ("query_key_value", 2),
              "attn1.to_out.0": ("dense", 0)}


@dataclass(frozen=True)
class Change:
    A: torch.Tensor
    B: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.A.shape[0]


def to_diffusers(changes: dict[str, Change]) -> tuple[dict, dict]:
    """(tensors, metadata) with the scale in B, which every reader then takes as it is."""
    tensors = {}
    for name, change in changes.items():
        A, B = change.A, scaled(change.B, change.scale)
        if name.endswith(CONVOLUTIONS):
            A, B = A[:, :, None, None], B[:, :, None, None]
        tensors[f"{PREFIX}{name}.lora_A.weight"], tensors[f"{PREFIX}{name}.lora_B.weight"] = A.contiguous(), B.contiguous()
    return tensors, peft_metadata({name: change.rank for name, change in changes.items()})


def to_kohya(changes: dict[str, Change]) -> tuple[dict, dict]:
    """(tensors, metadata): lora_unet_ names with an alpha each."""
    tensors = {}
    for name, change in changes.items():
        stem = "lora_unet_" + name.replace(".", "_")
        A, B = change.A, change.B
        if name.endswith(CONVOLUTIONS):
            A, B = A[:, :, None, None], B[:, :, None, None]
        tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = A.contiguous(), B.contiguous()
        tensors[f"{stem}.alpha"] = torch.tensor(change.scale * change.rank)
    ranks = {change.rank for change in changes.values()}
    told = {"ss_network_dim": str(ranks.pop())} if len(ranks) == 1 else {}
    return tensors, {"format": "pt", "ss_network_module": "networks.lora", **told}


def to_sat(changes: dict[str, Change]) -> dict[str, torch.Tensor]:
    """Tensors for SAT, which scales by 1 / rank. A projection that is not changed gets zeros, as SAT asks for all four.

    Raises ValueError for layers that SAT has no place for, by name, and for several ranks.
    """
    layers: dict[int, dict[str, Change]] = {}
    strange = []
    for name, change in changes.items():
        match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", name)
        if match and match[2] in SAT_PLACES:
            layers.setdefault(int(match[1]), {})[match[2]] = change
        else:
            strange.append(name)
    if strange:
        more = f" and {len(strange) - 4} more" if len(strange) > 4 else ""
        raise ValueError(f"SAT has a place for attention's projections alone, and this LoRA changes {', '.join(strange[:4])}{more}"
                         ". Train one with lora.targets attention+out.")
    ranks = sorted({change.rank for change in changes.values()})
    if len(ranks) != 1:
        raise ValueError(f"SAT has one rank for all layers, and this LoRA has {', '.join(map(str, ranks))}.")
    tensors = {}
    for number in sorted(layers):
        like = next(iter(layers[number].values()))
        for place, (module, part) in SAT_PLACES.items():
            change = layers[number].get(place) or Change(torch.zeros_like(like.A), torch.zeros_like(like.B), 1.0)
            stem = f"model.diffusion_model.transformer.layers.{number}.attention.{module}.matrix_"
            tensors[f"{stem}A.{part}"] = change.A.contiguous()
            tensors[f"{stem}B.{part}"] = scaled(change.B, change.scale * change.rank).contiguous()
    return tensors


def scaled(B: torch.Tensor, factor: float) -> torch.Tensor:
    """In B's type, rounded once."""
    return B if factor == 1 else (B.double() * factor).to(B.dtype)
