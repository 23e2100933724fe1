"""LoRA files of every naming -> the layers they change.

| written by                      | example                                                                        |
|---------------------------------|--------------------------------------------------------------------------------|
| diffusers, PEFT                 | transformer.transformer_blocks.0.attn1.to_q.lora_A.weight                      |
| PEFT's own                      | base_model.model.transformer_blocks.0.attn1.to_q.lora_A.default.weight         |
| ComfyUI, and Fun's PEFT form    | diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight                  |
| kohya, Fun (two underscores)    | lora_unet__transformer_blocks_0_attn1_to_q.lora_down.weight                    |
| LyCORIS                         | lycoris_transformer_blocks_0_attn1_to_q.lokr_w1                                |
| NVlabs' names                   | blocks.0.attn.qkv.lora_A.weight, a fused projection                            |
| SAT                             | transformer.layers.0.attention.query_key_value.matrix_A.0                      |
| a text encoder beside           | text_encoder.layers.0.self_attn.q_proj.lora_A.weight, lora_te_...              |

Nothing here imports ComfyUI.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field

import torch

from ..cogvideo_core import checkpoint as cogvideo
from ..sana_core import checkpoint as sana

_PART = re.compile(r"\.(lora_[AB]|lora_(?:up|down|mid)|lora\.(?:up|down)|lora_linear_layer\.(?:up|down)|matrix_[AB]\.\d+"
                   r"|lora_magnitude_vector|dora_scale|alpha|(?:lokr|hada|oft)_\w+|diff_b|diff)"
                   r"(?:\.(?!weight$)\w+)?(?:\.weight)?$")
_PARTS = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight", "lora_down": "lora_down.weight",
          "lora_up": "lora_up.weight", "lora.down": "lora_down.weight", "lora.up": "lora_up.weight",
          "lora_linear_layer.down": "lora_down.weight", "lora_linear_layer.up": "lora_up.weight",
          "lora_mid": "lora_mid.weight", "matrix_A": "lora_down.weight", "matrix_B": "lora_up.weight",
          "lora_magnitude_vector": "dora_scale"}
UP, DOWN, MID, DORA, ALPHA = "lora_up.weight", "lora_down.weight", "lora_mid.weight", "dora_scale", "alpha"
_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.", "module.")
_FLAT_PREFIXES = ("lora_unet_", "lycoris_", "lora_transformer_")
_TEXT = re.compile(r"(?:text_encoders?\d?|lora_te\d?|te\d?)[._]+(.+)")
METADATA = "lora_adapter_metadata"  # where diffusers writes PEFT's configuration


@dataclass
class Lora:
    """layers: {name of the layer: {part: tensor}}, parts as the host names them (lora_up.weight, lora_down.weight,
    alpha, dora_scale, lokr_w1 ...), for the transformer and for the text encoder; unmatched: keys with no place."""

    model: dict[str, dict] = field(default_factory=dict)
    text: dict[str, dict] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)


def read(state_dict: dict, model_layers, text_layers=(), metadata: dict | None = None, alpha: float = 0.0) -> Lora:
    """Sort a LoRA file's tensors by the layer that they change.

    model_layers, text_layers: the names that the layers have here, without ".weight". metadata: the file's.
    alpha: the scale is alpha / rank where neither the file's tensors nor its metadata say one; 0 means the rank itself,
    that is 1. (For SAT's own files, whose alpha is 1, it is 1 / rank.)
    """
    model, text, found, sat = _Names(model_layers), _Names(text_layers), Lora(), set()
    for key, tensor in state_dict.items():
        match = _PART.search(key)
        place = _place(key[: match.start()], model, text) if match else None
        if place is None or not _put(found, *place, match[1], tensor):
            found.unmatched.append(key)
        elif match[1].startswith("matrix_"):
            sat.update(place[1])
    stated = _stated_alpha(metadata or {})
    for layers, prefix in ((found.model, "transformer"), (found.text, "text_encoder")):
        for name, parts in layers.items():
            if ALPHA not in parts and DOWN in parts:
                if value := stated(prefix, name, parts[DOWN].shape[0]) or alpha or float(name in sat):
                    parts[ALPHA] = torch.tensor(float(value))
    return found


class _Names:
    """Layers by the names that files may call them."""

    def __init__(self, layers):
        self.layers = set(layers)
        self.flat = {name.replace(".", "_"): name for name in self.layers}

    def find(self, stem: str) -> tuple[str, ...]:
        """Our layers for a file's name of one; () for none."""
        if stem in self.layers:
            return (stem,)
        for prefix in _FLAT_PREFIXES:
            if stem.startswith(prefix) and (name := self.flat.get(stem[len(prefix):].lstrip("_"))):
                return (name,)
        for names in (sana.canonical_modules(stem), cogvideo.canonical_modules(stem)):
            if names and all(name in self.layers for name in names):
                return names
        for prefix in _PREFIXES:
            if stem.startswith(prefix) and (names := self.find(stem[len(prefix):])):
                return names
        return ()


def _place(stem, model, text):
    """(is it the text encoder's, the layers) or None."""
    if names := model.find(stem):
        return False, names
    if match := _TEXT.fullmatch(stem):
        bare = match[1]
        for candidate in (bare, bare.removeprefix("model."), "model." + bare, bare.removeprefix("transformer.")):
            name = candidate if candidate in text.layers else text.flat.get(candidate)
            if name:
                return True, (name,)
    return None


def _put(found, is_text, names, part, tensor) -> bool:
    """Put a tensor where it belongs; False when it cannot be cut for a fused layer."""
    part, _, place = part.partition(".") if part.startswith("matrix_") else (part, "", "")
    name = _PARTS.get(part, part)
    layers = found.text if is_text else found.model
    if place:  # SAT keeps one pair of matrices for each part of a fused layer
        if int(place) >= len(names):
            return False
        layers.setdefault(names[int(place)], {})[name] = tensor
        return True
    if len(names) > 1 and name not in (UP, DOWN, ALPHA, DORA):
        return False
    cut = len(names) > 1 and name in (UP, DORA)
    if cut and tensor.shape[0] % len(names):
        return False
    for layer, piece in zip(names, tensor.chunk(len(names)) if cut else (tensor,) * len(names)):
        if name == DORA and piece.ndim == 1:
            piece = piece[:, None]
        layers.setdefault(layer, {})[name] = piece
    return True


def _stated_alpha(metadata):
    """(prefix, layer, rank) -> the alpha that PEFT's configuration in the metadata gives, or None."""
    try:
        config = json.loads(metadata.get(METADATA) or "{}")
    except json.JSONDecodeError:
        config = {}

    def value(prefix, layer, rank):
        def of(name):
            return config.get(f"{prefix}.{name}", config.get(name))
        alpha = of("lora_alpha")
        for pattern, other in (of("alpha_pattern") or {}).items():
            if re.fullmatch(rf"(?:.*\.)?{pattern}", layer):
                alpha = other
        if alpha is None:
            return None
        return alpha * math.sqrt(rank) if of("use_rslora") else alpha
    return value
