"""What `run.py convert` does with a LoRA: read under any of the names that the loaders know, written under others."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import safetensors.torch
import torch

from ..cogvideo_core.config import CogVideoParams
from ..cogvideo_core.transformer import CogVideoTransformer
from ..host.lora_alpha import peft_configs  # of host/, but without ComfyUI
from ..host.lora_keys import ALPHA, DORA, DOWN, FILE, NOBODY, SAT, UP, WHOLE, read
from ..sana_core.config import SanaParams
from ..sana_core.transformer import SanaTransformer
from ..storage.checkpoints import check_finite, open_checkpoint
from ..training.adapter_layouts import Change, apart, to_diffusers, to_kohya, to_nvlabs, to_sat

MARKS = (".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", ".matrix_A.", ".matrix_B.", ".lora.down.", ".lora.up.")
LAYOUTS = ("diffusers", "kohya", "nvlabs", "native")
BASE = ".original."  # where SAT's LoRA keeps the layer that it changes


def is_adapter(shapes) -> bool:
    """Whether the keys of a checkpoint are a LoRA's, or hold one."""
    return any(mark in key for key in shapes for mark in MARKS)


def convert_adapter(path: Path, output: Path, layout: str = "diffusers", dtype: torch.dtype | None = None,
                    alpha: float = 0.0) -> list[str]:
    """Write `output`; returns lines that say what was done.

    path: a file, or a PEFT folder. layout: one of LAYOUTS; native is SAT's, CogVideoX alone; nvlabs
    Sana alone, its projections stacked. dtype: None keeps the file's.
    alpha: for files that state none; 0 is the rank, that is a scale of 1. What of a checkpoint is no LoRA stays behind. Raises
    ValueError and OSError before anything is written.
    """
    path, output = Path(path), Path(output)
    if layout not in LAYOUTS:
        raise ValueError(f"there is no layout {layout} of a LoRA, only {', '.join(LAYOUTS)}.")
    endings = (".pt", ".safetensors") if layout == "native" else (".safetensors",)
    if output.suffix not in endings:
        raise ValueError(f"{output.name}: the name of this output has to end in {' or '.join(endings)}.")
    if output.exists():
        raise FileExistsError(f"{output} is there already, and nothing is overwritten: give another name.")
    checkpoint = open_checkpoint(path)
    file = checkpoint.files[0]
    found = read(checkpoint.load(), layer_names(), (), peft_configs(file, checkpoint.metadata), alpha)
    changes = changes_of(found, path.name)
    if layout != "nvlabs":
        changes = apart(changes)
    if dtype:
        changes = {name: Change(change.A.to(dtype), change.B.to(dtype), change.scale) for name, change in changes.items()}
    write(output, changes, layout)
    return [told(path, found, changes), f"{output}: {output.stat().st_size / 1e6:,.1f} MB"]


def changes_inside(path: Path, tensors: dict) -> dict[str, Change]:
    """{layer: Change} of a SAT checkpoint of LoRA training, which holds the model too. Raises ValueError for another file."""
    if not any(BASE in key for key in tensors) or not is_adapter(tensors):
        raise ValueError(f"{path.name}: this is no checkpoint of SAT's LoRA training that holds the model ({BASE}weight) and the "
                         "LoRA (matrix_A, matrix_B): leave --merge away.")
    return changes_of(read(tensors, layer_names()), path.name)


def without_adapter(mapping: dict) -> dict:
    """Such a checkpoint's model under its own names. Values are passed through, tensors and shapes alike."""
    return {key.replace(BASE, "."): value for key, value in mapping.items() if not any(mark in key for mark in MARKS)}


def merged(part: dict[str, torch.Tensor], changes: dict[str, Change]) -> dict[str, torch.Tensor]:
    """Weights W + scale * B A, computed in fp32, in W's type. Raises ValueError for a change of another size."""
    part = dict(part)
    for name in {key.removesuffix(".weight") for key in part} & changes.keys():
        W, change = part[f"{name}.weight"], changes[name]
        if tuple(W.shape) != (size := (change.B.shape[0], change.A.shape[1])):
            raise ValueError(f"{name}: its weight is {tuple(W.shape)}, and its LoRA's change {size}: they are not of one model.")
        if not W.is_meta:
            part[f"{name}.weight"] = torch.addmm(W.float(), change.B.float(), change.A.float(), alpha=change.scale).to(W.dtype)
    return part


def changes_of(found, filename: str) -> dict[str, Change]:
    """{layer: Change} of what was read. Raises ValueError where something would be lost, by name."""
    left = {key: why for key, why in found.left_out.items() if why != WHOLE}
    unknown = [key for key in found.unmatched if any(mark in key for mark in MARKS) or key.endswith(".alpha")]
    if unknown or left:
        names = [*unknown, *(f"{key} ({why})" for key, why in left.items())]
        raise ValueError(f"{filename}: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''} would be lost: no layer of Sana's "
                         "or CogVideoX' transformer. Nothing was written.")
    if not found.model:
        raise ValueError(f"{filename}: there is no LoRA of a Sana or CogVideoX transformer in it.")
    changes = {}
    for name in sorted(found.model, key=lambda name: [int(part) if part.isdigit() else part for part in name.split(".")]):
        parts = found.model[name]
        if other := sorted(parts.keys() - {UP, DOWN, ALPHA}):
            kind = "DoRA" if DORA in other else ", ".join(other)
            raise ValueError(f"{filename}: {name} has more than the two matrices of a LoRA ({kind}), which these layouts cannot "
                             "all hold. Nothing was written.")
        if UP not in parts or DOWN not in parts:
            raise ValueError(f"{filename}: of {name} there is only one of the two matrices: the file is cut off. Get it again.")
        A, B = (parts[part].flatten(1).clone() for part in (DOWN, UP))  # layers of a fused one share theirs
        changes[name] = Change(A, B, float(parts[ALPHA]) / A.shape[0] if ALPHA in parts else 1.0)
    check_finite({f"{name}.{part}": getattr(change, part) for name, change in changes.items() for part in "AB"}, filename)
    return changes


def write(output: Path, changes: dict[str, Change], layout: str) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_suffix(".part")
    if layout == "native":
        tensors = to_sat(changes)
        if output.suffix == ".pt":
            torch.save({"module": tensors}, part)  # as SAT reads it
        else:
            safetensors.torch.save_file(tensors, part, metadata={"format": "pt"})
    else:
        tensors, metadata = {"diffusers": to_diffusers, "kohya": to_kohya, "nvlabs": to_nvlabs}[layout](changes)
        safetensors.torch.save_file(tensors, part, metadata=metadata)
    os.replace(part, output)


def told(path, found, changes) -> str:
    ranks = sorted({change.rank for change in changes.values()})
    scales = sorted({round(change.scale, 6) for change in changes.values()})
    who = {FILE: "its alphas", SAT: "SAT's alpha of 1", NOBODY: "no alpha, so 1"}
    sources = ", ".join(who.get(source, source) for source in found.alphas)
    return (f"{path.name}: LoRA of {len(changes)} layers, rank {', '.join(map(str, ranks))}, scale "
            f"{', '.join(f'{scale:g}' for scale in scales[:4])}{' ...' if len(scales) > 4 else ''} ({sources})")


@functools.cache
def layer_names() -> tuple[str, ...]:
    """Names of all linear layers that a transformer of either family may have."""
    sana = SanaTransformer(SanaParams(num_layers=60, num_attention_heads=1, num_cross_attention_heads=1,
                                      cross_attention_head_dim=32), device="meta")
    video = CogVideoTransformer(CogVideoParams(num_layers=42, num_attention_heads=1, ofs_embed_dim=64), device="meta")
    return tuple({name: None for model in (sana, video) for name, module in model.named_modules()
                  if isinstance(module, torch.nn.Linear) or name == "patch_embed.proj"})
