"""LoRA files of every naming -> the layers they change.

| written by                      | example                                                                        |
|---------------------------------|--------------------------------------------------------------------------------|
| diffusers, PEFT                 | transformer.transformer_blocks.0.attn1.to_q.lora_A.weight                      |
| PEFT's own                      | base_model.model.transformer_blocks.0.attn1.to_q.lora_A.default.weight         |
| ComfyUI, and Fun's PEFT form    | diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight                  |
| kohya, Fun (two underscores)    | lora_unet__transformer_blocks_0_attn1_to_q.lora_down.weight                    |
| LyCORIS                         | lycoris_transformer_blocks_0_attn1_to_q.lokr_w1                                |
| NVlabs' names                   | blocks.0.attn.qkv.lora_A.weight, a fused projection                            |
| DiffSynth (ExVideo)             | blocks.0.attn1.to_out.lora_A.default.weight                                    |
| SAT                             | transformer.layers.0.attention.query_key_value.matrix_A.0                      |
| a text encoder beside           | text_encoder.layers.0.self_attn.q_proj.lora_A.weight, lora_te_...              |

Which kinds of change there are is the host's to know: only a LoRA's own words have a spelling of their own here, what
else stands behind a layer's name is handed on as it is. Nothing here imports ComfyUI.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from ..cogvideo_core import checkpoint as cogvideo
from ..sana_core import checkpoint as sana
from ..sana_core import video_checkpoint as sana_video
from .lora_alpha import PeftConfig

# What follows a layer's name, with the name of PEFT's adapter that may stand in it.
_WORD = re.compile(r"(?:\.|_(?=lora\.))(lora_[AB]|lora_(?:up|down|mid)|lora\.(?:up|down)|lora_linear_layer\.(?:up|down)"
                   r"|matrix_[AB]\.\d+|lora_magnitude_vector|dora_scale|(?:lokr|hada|oft)_\w+)"
                   r"(?:\.(?!(?:weight|bias)$)\w+)?(?:\.(weight|bias))?$")
UP, DOWN, MID, DORA, ALPHA = "lora_up.weight", "lora_down.weight", "lora_mid.weight", "dora_scale", "alpha"
UP_BIAS, BIAS = "lora_up.bias", "diff_b"
_SPELLINGS = {"lora_A": DOWN, "lora_B": UP, "lora_down": DOWN, "lora_up": UP, "lora.down": DOWN, "lora.up": UP,
              "lora_linear_layer.down": DOWN, "lora_linear_layer.up": UP, "lora_mid": MID, "matrix_A": DOWN,
              "matrix_B": UP, "lora_magnitude_vector": DORA}
_WHOLE_WEIGHT = re.compile(r"(?:(?:base_layer|original|original_module|modules_to_save)\.)?(?:weight|bias)")
_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.", "module.")
_FLAT_PREFIXES = ("lora_unet_", "lycoris_", "lora_transformer_")
_TEXT = re.compile(r"(?:text_encoders?\d?|lora_te\d?|te\d?)[._]+(.+)")

# On a fused projection: parts that have its rows, and parts that all of its layers share.
_CUT = {UP, UP_BIAS, BIAS, DORA, "diff", "set_weight", "hada_w1_a", "hada_w2_a"}
_SHARED = {DOWN, ALPHA, "hada_w1_b", "hada_w2_b"}

FILE, USER, SAT, NOBODY = "the file", "the node", "SAT's custom", "nobody"  # who states an alpha

WHOLE = "it is a whole weight and not the change of one"


@dataclass
class Lora:
    """What a file holds, by the layers here.

    model, text: {name of the layer: {part: tensor}} for the transformer and for the text encoder, parts as the host names
    them (lora_up.weight, lora_down.weight, alpha, dora_scale, lokr_w1 ...). unmatched: keys that name no layer here.
    left_out: {key or name: why}, of those that do. alphas: who stated the alphas -> of how many layers; see `read`.
    notes: what else a user should know.
    """

    model: dict[str, dict] = field(default_factory=dict)
    text: dict[str, dict] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    alphas: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


@dataclass
class _Change:
    """All that a file says of one of its layers. stem: its name there. names: its layers here, several when it is fused."""

    is_text: bool
    stem: str
    names: tuple[str, ...]
    is_sat: bool
    parts: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def rank(self) -> int | None:
        """What alpha is divided by; None for kinds to which alpha means nothing or something else."""
        part = next((part for part in (DOWN, "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if part in self.parts), None)
        if part:
            return next(iter(self.parts[part].shape), None)
        return min(self.parts["a1.weight"].shape[:2], default=None) if "a1.weight" in self.parts else None

    @property
    def peft_names(self) -> tuple:
        """Arguments of PeftConfig's methods."""
        return "text_encoder" if self.is_text else "transformer", (self.stem, *self.names)


def read(state_dict: dict, model_layers, text_layers=(), configs: list[PeftConfig] = (), alpha: float = 0.0) -> Lora:
    """Sort a LoRA file's tensors by the layer that they change.

    model_layers, text_layers: the names that the layers have here, without ".weight". configs: what PEFT says of the file.
    alpha: the scale is alpha / rank where neither the file's tensors nor its configuration say one; 0 means the rank itself,
    that is 1. (For SAT's own files, whose alpha is 1, it is 1 / rank.)
    `Lora.alphas` counts by FILE, a configuration's source, USER, SAT, and NOBODY, where scale 1 is assumed.
    """
    found = Lora()
    changes = _changes(state_dict, _Names(model_layers), _Names(text_layers), found)
    configs = [config for config in configs if _fits(config, changes, found.notes)]
    for change in changes:
        if ALPHA in change.parts and change.parts[ALPHA].numel() != 1:
            found.left_out[change.stem] = f"its alpha is no number but has the shape {tuple(change.parts[ALPHA].shape)}"
            continue
        if rank := change.rank:
            source, value = _alpha(change, rank, configs, alpha)
            found.alphas[source] += 1
            if value is not None:
                change.parts[ALPHA] = torch.tensor(float(value))
        elif {"lokr_w1", "lokr_w2"} <= change.parts.keys():
            _scale_whole_lokr(change, configs, found)
        elif "oft_blocks" in change.parts:
            # There alpha is a bound and 0 none, which LyCORIS always writes. Without it the host's BOFT does not work.
            change.parts.setdefault(ALPHA, torch.tensor(0.0))
        if rank and UP_BIAS in change.parts:  # PEFT scales it too, the host does not
            scale = float(change.parts[ALPHA]) / rank if ALPHA in change.parts else 1.0
            change.parts[BIAS] = change.parts.pop(UP_BIAS).float() * scale
        _put(found, change)
    return found


def is_for_text(key: str) -> bool:
    """Whether a file's key names a text encoder's layer."""
    return bool(_TEXT.match(key))


class _Names:
    """Layers by the names that files may call them."""

    def __init__(self, layers):
        self.layers = set(layers)
        self.flat = {name.replace(".", "_"): name for name in self.layers}
        self.known: dict[str, tuple[str, ...]] = {}

    def find(self, stem: str) -> tuple[str, ...]:
        """Our layers for a file's name of one; () for none."""
        if stem not in self.known:
            self.known[stem] = self._find(stem)
        return self.known[stem]

    def _find(self, stem):
        if stem in self.layers:
            return (stem,)
        for prefix in _FLAT_PREFIXES:
            if stem.startswith(prefix) and (name := self.flat.get(stem[len(prefix):].lstrip("_"))):
                return (name,)
        for names in (sana.canonical_modules(stem), sana_video.canonical_modules(stem), cogvideo.canonical_modules(stem)):
            if names and all(name in self.layers for name in names):
                return names
        for prefix in _PREFIXES:
            if stem.startswith(prefix) and (names := self.find(stem[len(prefix):])):
                return names
        return ()


def _changes(state_dict, model: _Names, text: _Names, found: Lora) -> list[_Change]:
    """The file's tensors by its own layers; what is none of a change goes to `found`."""
    changes: dict[tuple, _Change] = {}
    for key, tensor in state_dict.items():
        for stem, part in _splits(key):
            if place := _place(stem, model, text):
                break
        else:
            found.unmatched.append(key)
            continue
        is_text, names = place
        word, _, number = part.partition(".") if part.startswith("matrix_") else (part, "", "")
        if number:  # SAT keeps one pair of matrices for each part of a fused layer
            stem, names = f"{stem}.{number}", names[int(number) : int(number) + 1]
            if not names:
                found.unmatched.append(key)
                continue
        change = changes.setdefault((is_text, stem), _Change(is_text, stem, names, bool(number)))
        part = _SPELLINGS.get(word, word)
        if _WHOLE_WEIGHT.fullmatch(part):
            found.left_out[key] = WHOLE
        elif part in change.parts:
            found.left_out[key] = f"the file has another {part} for the same layer"
        else:
            # PEFT's sizes are those of the outputs, in whatever shape; the host tells by the first dimension.
            change.parts[part] = tensor.reshape(-1, 1) if word == "lora_magnitude_vector" else tensor
    return [change for change in changes.values() if change.parts]


def _splits(key) -> Iterator[tuple[str, str]]:
    """(name of the layer, part) as a key may be read, the likeliest first."""
    if match := _WORD.search(key):
        word, leaf = match.groups()
        of_up = _SPELLINGS.get(word) == UP
        yield key[: match.start()], word if leaf != "bias" else UP_BIAS if of_up else f"{word}.bias"
    else:
        yield from ((key[:i], key[i + 1 :]) for i in range(len(key) - 1, 0, -1) if key[i] == ".")


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


def _fits(config: PeftConfig, changes, notes) -> bool:
    """Whether a configuration speaks of these matrices. PEFT itself would not load them with one of another rank."""
    for change in changes:
        if DOWN in change.parts and (stated := config.rank(*change.peft_names)) not in (None, change.rank):
            notes.append(f"{config.source} speaks of rank {stated:g} for {change.stem}, whose matrices have {change.rank}: it is "
                         "another file's and is not used")
            return False
    return True


def _alpha(change: _Change, rank, configs, alpha):
    """(who says it, alpha or None)"""
    if ALPHA in change.parts:
        return FILE, change.parts[ALPHA]
    for config in configs:
        if (value := config.alpha(*change.peft_names, rank)) is not None:
            return config.source, value
    if alpha:
        return USER, alpha
    return (SAT, 1.0) if change.is_sat else (NOBODY, None)


def _scale_whole_lokr(change: _Change, configs, found: Lora) -> None:
    """PEFT multiplies a LoKr of two whole matrices by alpha / rank too, for which the host sees no rank."""
    for config in configs:
        rank = config.rank(*change.peft_names)
        alpha = config.alpha(*change.peft_names, rank) if rank else None
        if alpha is not None:
            found.alphas[config.source] += 1
            change.parts["lokr_w1"] = change.parts["lokr_w1"].float() * (alpha / rank)
            return


def _put(found: Lora, change: _Change) -> None:
    """Put a change where it belongs, that of a fused layer in pieces."""
    layers, count = found.text if change.is_text else found.model, len(change.names)
    pieces = {}
    for part, tensor in change.parts.items():
        cut = count > 1 and part in _CUT
        if count > 1 and not cut and part not in _SHARED:
            found.left_out[change.stem] = f"{part} of a fused layer cannot be divided among {', '.join(change.names)}"
            return
        if cut and (rows := next(iter(tensor.shape), 1)) % count:
            names = ", ".join(change.names)
            found.left_out[change.stem] = f"the {rows} rows of {part} cannot be divided among {names}"
            return
        pieces[part] = tensor.chunk(count) if cut else (tensor,) * count
    for i, name in enumerate(change.names):
        if name in layers:
            found.left_out[change.stem] = f"the file changes {name} under another name too"
        else:
            layers[name] = {part: piece[i] for part, piece in pieces.items()}
