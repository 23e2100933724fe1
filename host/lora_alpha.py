"""The alpha that PEFT's configuration gives a LoRA: diffusers writes it into the file's metadata, PEFT beside the file.

Nothing here imports ComfyUI.
"""

from __future__ import annotations

import json
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path

from ..storage.weight_files import WEIGHT_ENDINGS

METADATA = "lora_adapter_metadata"
BESIDE = "adapter_config.json"
_DICTS = ("alpha_pattern", "rank_pattern")


@dataclass(frozen=True)
class PeftConfig:
    """source: what messages call it. values: its JSON, in the file's metadata with "transformer." before each name."""

    source: str
    values: dict

    def alpha(self, prefix: str, names, rank: int) -> float | None:
        """The alpha of a layer, such that alpha / rank is its scale; None where none is stated.

        prefix: "transformer" or "text_encoder". names: what the layer is called, patterns may mean any of them.
        rank: of its matrices.
        """
        alpha = self._of(prefix, names, "alpha_pattern", "lora_alpha", "alpha")
        if alpha is None:
            return None
        return alpha * math.sqrt(rank) if self._value(prefix, "use_rslora") else float(alpha)

    def rank(self, prefix: str, names) -> int | None:
        """The rank that it states for a layer, or None."""
        return self._of(prefix, names, "rank_pattern", "r")

    def _value(self, prefix, name):
        return self.values.get(f"{prefix}.{name}", self.values.get(name))

    def _of(self, prefix, names, patterns, *keys):
        """The first pattern that fits counts, as in PEFT; else the first of `keys` that is there."""
        for pattern, value in (self._value(prefix, patterns) or {}).items():
            if any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
                return value
        return next((value for key in keys if (value := self._value(prefix, key)) is not None), None)


def config_beside(path: Path) -> Path | None:
    """The adapter_config.json that is surely about the LoRA file at `path`: that beside PEFT's own adapter_model.*, or
    beside the only weights in a folder. None otherwise, as in a folder where LoRAs of all origins lie."""
    config = path.with_name(BESIDE)
    if not config.is_file():
        return None
    alone = [p.name for p in path.parent.iterdir() if p.name.endswith(WEIGHT_ENDINGS)] == [path.name]
    return config if alone or path.name.startswith("adapter_model.") else None


def peft_configs(path: Path, metadata: dict) -> list[PeftConfig]:
    """What PEFT says of the LoRA file at `path`, the nearest first. One that cannot be read is warned of and left out."""
    texts = {f"the metadata ({METADATA})": metadata[METADATA]} if metadata.get(METADATA) else {}
    if beside := config_beside(path):
        try:
            texts[BESIDE] = beside.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            texts[BESIDE] = ""
    elif path.with_name(BESIDE).is_file():
        logging.info("%s: %s in its folder may be another file's and is not read. In a folder of their own it is.",
                     path.name, BESIDE)
    out = []
    for source, text in texts.items():
        if fault := _fault(text):
            logging.warning("%s: %s is damaged (%s), so that the alpha in it is not known. Get it again, or set alpha.",
                            path.name, source, fault)
        else:
            out.append(PeftConfig(source, json.loads(text)))
    return out


def _fault(text) -> str:
    """What is wrong with a configuration; "" for a good one."""
    try:
        values = json.loads(text)
    except ValueError as error:
        return f"no JSON: {error}"
    if not isinstance(values, dict):
        return "no dictionary"
    numbers = {}
    for key, value in values.items():
        name = key.rpartition(".")[2]
        if name in _DICTS and value is not None:
            if not isinstance(value, dict):
                return f"{key} is {value!r}"
            numbers |= {f"{key}: {pattern}": number for pattern, number in value.items()}
            for pattern in value:
                try:
                    re.compile(pattern)
                except re.error as error:
                    return f"{key}: {pattern!r}: {error}"
        elif name in ("lora_alpha", "alpha", "r") and value is not None:
            numbers[key] = value
    return next((f"{key} is {number!r}" for key, number in numbers.items()
                 if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number)), "")
