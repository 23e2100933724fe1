"""LoRA files in other programs' names. A change is one layer's: A (rank, in), B (out, rank), and the scale of B A.

SAT's own mixin computes alpha / rank with alpha 1, and has a place for attention's four projections alone: a file for it
holds B * scale * rank. Source: facts/training.md 2.4. NVlabs' Sana stacks the projections of an attention in one layer: a
file for it holds the several A one above the other, and their B along a diagonal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from ..sana_core.checkpoint import nvlabs_module
from .adapter_files import CONVOLUTIONS, PREFIX, peft_metadata

# Our name of a projection -> where SAT keeps its pair.
SAT_PLACES = {"attn1.to_q": ("query_key_value", 0), "attn1.to_k": ("query_key_value", 1), "attn1.to_v": ("query_key_value", 2),
              "attn1.to_out.0": ("dense", 0)}
# An attention has one name in both families: of released models its width tells whose it is.
COGVIDEOX_WIDTHS, SANA_WIDTHS = (1920, 3072), (1152, 2240, 2560)
NVLABS_CONVOLUTIONS = ("mlp.inverted_conv.conv", "mlp.point_conv.conv", "x_embedder.proj")


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

    Raises ValueError for layers that SAT has no place for, by name, for Sana's attention, and for several ranks.
    """
    if sanas := [name for name, change in changes.items() if ".attn1." in name and change.A.shape[1] in SANA_WIDTHS]:
        raise ValueError(f"SAT's layout is CogVideoX', and {_some(sanas)} is of a Sana, {changes[sanas[0]].A.shape[1]} wide. Take "
                         "diffusers or kohya, or nvlabs for Sana.")
    layers: dict[int, dict[str, Change]] = {}
    strange = []
    for name, change in changes.items():
        match = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", name)
        if match and match[2] in SAT_PLACES:
            layers.setdefault(int(match[1]), {})[match[2]] = change
        else:
            strange.append(name)
    if strange:
        raise ValueError(f"SAT has a place for attention's projections alone, and this LoRA changes {_some(strange)}. Train one "
                         "with lora.targets attention+out.")
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


def to_nvlabs(changes: dict[str, Change]) -> tuple[dict, dict]:
    """(tensors, metadata) for NVlabs' Sana, with the scale in B. A projection that is not changed has zeros in a stack.

    Raises ValueError, by name, for layers that Sana has not in NVlabs' files, and for CogVideoX' attention.
    """
    strange = [name for name, change in changes.items() if nvlabs_module(name) is None
               or ".attn1." in name and change.A.shape[1] in COGVIDEOX_WIDTHS]
    if strange:
        raise ValueError(f"NVlabs' layout is Sana's, and has no place for {_some(strange)}. Take diffusers or kohya, or native "
                         "for CogVideoX.")
    tensors = {}
    for theirs, ours in dict.fromkeys(map(nvlabs_module, changes)):
        A, B = _stacked([changes.get(name) for name in ours])
        if theirs.endswith(NVLABS_CONVOLUTIONS):
            A, B = A[:, :, None, None], B[:, :, None, None]
        tensors[f"{theirs}.lora_A.weight"], tensors[f"{theirs}.lora_B.weight"] = A.contiguous(), B.contiguous()
    return tensors, {"format": "pt"}


def _stacked(parts: list[Change | None]) -> tuple[torch.Tensor, torch.Tensor]:
    """(A, B) of projections that are one layer; None: not changed. Their outputs have one size."""
    given = [part for part in parts if part is not None]
    rows = given[0].B.shape[0]
    if all(torch.equal(part.A, given[0].A) for part in given):  # as they come from such a file
        none = torch.zeros_like(given[0].B)
        return given[0].A, torch.cat([none if part is None else scaled(part.B, part.scale) for part in parts])
    A = torch.cat([part.A for part in given])
    B, at = A.new_zeros(rows * len(parts), A.shape[0]), 0
    for place, part in enumerate(parts):
        if part is not None:
            B[place * rows : (place + 1) * rows, at : at + part.rank] = scaled(part.B, part.scale)
            at += part.rank
    return A, B


def apart(changes: dict[str, Change]) -> dict[str, Change]:
    """Changes that share a stack's A, each without the rows that do nothing to it: to_nvlabs the other way. One that is
    nothing but zeros, while another is not, is left out."""
    made = dict(changes)
    for _, ours in dict.fromkeys(filter(None, map(nvlabs_module, changes))):
        given = [name for name in ours if name in changes]
        if len(given) > 1 and all(torch.equal(changes[name].A, changes[given[0]].A) for name in given):
            used = {name: changes[name].B.any(0) for name in given}
            for name in given if any(rows.any() for rows in used.values()) else ():
                change = made.pop(name)
                if used[name].any():
                    made[name] = Change(change.A[used[name]], change.B[:, used[name]], change.scale)
    return {name: made[name] for name in changes if name in made}


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def scaled(B: torch.Tensor, factor: float) -> torch.Tensor:
    """In B's type, rounded once."""
    return B if factor == 1 else (B.double() * factor).to(B.dtype)
