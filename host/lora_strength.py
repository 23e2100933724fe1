"""How large a LoRA's change is beside the weights that it changes.

Nothing here imports ComfyUI.
"""

from __future__ import annotations

import math
import statistics

import torch

from .lora_keys import ALPHA, DOWN, MID, UP

# |change| / |weight|, Frobenius. The embedded outline LoRA, a strong style, has 0.3. At 1 nothing of a layer is left as it
# was: a change of low rank is then many times as strong as the weight in the few directions that it has. A scale that was
# lost (SAT's files at 1 instead of 1 / rank) multiplies by a hundred or more and lands above. The median counts: single
# layers with small weights, such as a model's last, may be changed by more.
TOO_STRONG = 1.0
_SAMPLE = 16  # layers, spread over the model: all the weights would have to be read from disk


def relative_change(layers: dict[str, dict], names: list[str], weights: dict[str, torch.Tensor | None]) -> float:
    """The median of |change| / |weight| over a sample of the layers `names`, at strength 1; 0 where it is not known.

    layers: {name: {part: tensor}}. weights: {name: tensor}; those that are quantised or not there are passed over.
    """
    ratios = []
    step = max(1, len(names) // _SAMPLE)
    for name in names[::step]:
        change, weight = _change_norm(layers[name]), weights.get(name)
        if change is None or weight is None or weight.is_meta or type(weight.data) is not torch.Tensor:
            continue
        weight = weight.detach().float() if weight.element_size() == 1 else weight.detach()
        if size := float(torch.linalg.vector_norm(weight, dtype=torch.float32)):
            ratios.append(change / size)
    return statistics.median(ratios) if ratios else 0.0


def _change_norm(parts) -> float | None:
    """|scale B A| of a LoRA, |scale w1 (x) w2| of a LoKr, |diff|; None for other kinds."""
    if "diff" in parts:
        return float(torch.linalg.vector_norm(parts["diff"], dtype=torch.float32))
    if UP in parts and DOWN in parts and MID not in parts:
        return _product_norm(parts[UP], parts[DOWN]) * _scale(parts, parts[DOWN].shape[0])
    one, two = (_factor_norm(parts, name) for name in ("lokr_w1", "lokr_w2"))
    if one is None or two is None or "lokr_t2" in parts:
        return None
    rank = next((parts[p].shape[0] for p in ("lokr_w2_b", "lokr_w1_b") if p in parts), None)
    return one * two * (_scale(parts, rank) if rank else 1.0)


def _scale(parts, rank) -> float:
    return float(parts[ALPHA]) / rank if ALPHA in parts else 1.0


def _factor_norm(parts, name):
    if name in parts:
        return float(torch.linalg.vector_norm(parts[name], dtype=torch.float32))
    if f"{name}_a" in parts and f"{name}_b" in parts:
        return _product_norm(parts[f"{name}_a"], parts[f"{name}_b"])
    return None


def _product_norm(left, right) -> float:
    """|left right| from the two rank x rank matrices left' left and right right': the product itself is never made."""
    left, right = left.detach().flatten(1).float(), right.detach().flatten(1).float()
    return math.sqrt(max(0.0, float(((left.T @ left) * (right @ right.T)).sum())))
