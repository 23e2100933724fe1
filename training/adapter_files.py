"""A LoRA as a file that loads everywhere: in ComfyUI by the stock loader and by ours, in diffusers, and in programs that show
what a file is.

Names and shapes are diffusers'. The scale alpha / rank is multiplied into B, so that no reader can lose it: a file of scale 1
needs no alpha, and diffusers refuses one that holds tensors called alpha. What was trained with stands in the metadata.

DoRA's magnitudes have PEFT's name, which diffusers and our Load LoRA read; ComfyUI's stock loader passes over it. ComfyUI
divides by the lengths of W where DoRA has those of W + B A: a change of 30 % of the weights then differs by 2 %.
"""

from __future__ import annotations

import datetime
import json
import os
from collections import Counter
from pathlib import Path

import safetensors.torch
import torch

from .adapters import Adapters

PREFIX = "transformer."
CONVOLUTIONS = (".conv_inverted", ".conv_point")  # diffusers' Sana has 1x1 convolutions there
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def write(path: Path, adapters: Adapters, about: dict[str, str], dtype: str = "fp32") -> Path:
    """Write the file; one that is there stays until the new one is whole.

    about: "title", "architecture" (as modelspec has it, "sana/lora"), "resolution", "base_model" and what else there is to tell
    of the training, in ss_* names. Values become text.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    safetensors.torch.save_file(to_tensors(adapters, DTYPES[dtype]), part, metadata=metadata(adapters, about))
    os.replace(part, path)
    return path


def to_tensors(adapters: Adapters, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """{diffusers' name: tensor} on the CPU."""
    tensors = {}
    for name, low in zip(adapters.names, adapters.layers):
        A, B, magnitude = low.A.detach(), low.B.detach() * low.scale, low.magnitude
        if name.endswith(CONVOLUTIONS):
            A, B = A[:, :, None, None], B[:, :, None, None]
            magnitude = None if magnitude is None else magnitude[None, :, None, None]  # as PEFT has it
        tensors[f"{PREFIX}{name}.lora_A.weight"], tensors[f"{PREFIX}{name}.lora_B.weight"] = A, B
        if magnitude is not None:
            tensors[f"{PREFIX}{name}.lora_magnitude_vector"] = magnitude.detach()
    return {name: tensor.to("cpu", dtype).contiguous() for name, tensor in tensors.items()}


def metadata(adapters: Adapters, about: dict[str, str]) -> dict[str, str]:
    dora = adapters.layers[0].magnitude is not None
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    known = {"title": about.get("title", "LoRA"), "architecture": about.get("architecture", ""),
             "resolution": about.get("resolution", ""), "date": now, "sai_model_spec": "1.0.0",
             "implementation": "https://github.com/huggingface/diffusers"}
    said = {key: str(value) for key, value in about.items() if key.startswith("ss_")}
    return {**peft_metadata({name: adapters.rank for name in adapters.names}, dora),
            **{f"modelspec.{key}": str(value) for key, value in known.items() if value},
            "ss_network_module": "networks.lora", "ss_network_dim": str(adapters.rank), "ss_network_alpha": str(adapters.rank),
            "ss_trained_alpha": str(adapters.alpha), "ss_base_model": about.get("base_model", ""), **said}


def peft_metadata(ranks: dict[str, int], dora: bool = False) -> dict[str, str]:
    """What diffusers makes a LoraConfig of, for a file whose scale stands in B: alpha is the rank. ranks: {layer: rank}.

    Only fields that every PEFT knows: diffusers refuses a file with one that is newer than the PEFT beside it.
    """
    most = Counter(ranks.values()).most_common(1)[0][0]
    others = {name: rank for name, rank in ranks.items() if rank != most}
    config = {"r": most, "lora_alpha": most, "target_modules": sorted(ranks), "rank_pattern": others, "alpha_pattern": others,
              "bias": "none", "lora_dropout": 0.0, "use_dora": dora, "use_rslora": False}
    config = {f"{PREFIX}{key}": value for key, value in config.items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(config, sort_keys=True)}


@torch.no_grad()
def load(path: Path, adapters: Adapters) -> None:
    """Fill adapters of the same layers and rank from a file of `write`. Raises ValueError for another one."""
    tensors = safetensors.torch.load_file(path)
    expected = set(to_tensors(adapters))
    if set(tensors) != expected:
        odd = sorted(set(tensors) ^ expected)
        raise ValueError(f"{Path(path).name}: it changes other layers than lora.targets says: {', '.join(odd[:4])}"
                         f"{' ...' if len(odd) > 4 else ''}. Use the settings that it was trained with.")
    for name, low in zip(adapters.names, adapters.layers):
        A, B = (tensors[f"{PREFIX}{name}.lora_{part}.weight"].flatten(1) for part in "AB")
        if A.shape != low.A.shape:
            raise ValueError(f"{Path(path).name}: its rank is {A.shape[0]}, and lora.rank is {low.A.shape[0]}.")
        low.A.copy_(A)
        low.B.copy_(B / low.scale)
        if low.magnitude is not None:
            low.magnitude.copy_(tensors[f"{PREFIX}{name}.lora_magnitude_vector"].flatten())
