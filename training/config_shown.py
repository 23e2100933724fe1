"""Settings as they were loaded, and a file of them that says where each comes from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .config import Config, fields, get
from .config_rules import applies
from .config_yaml import word

DEFAULT = "default"


@dataclass(frozen=True)
class Loaded:
    """config, and sources: {dotted key: "FILE:LINE:COLUMN", "SANACOG__TRAIN__LR", "train.lr=2e-4 on the command line" or
    "default"}."""

    config: Config
    sources: dict[str, str]

    def show(self) -> str:
        """All settings that this run uses as YAML, each with its source behind it; it loads again to the same."""
        lines, section = ["# The settings of a run, and where each comes from."], ()
        for key in fields():
            if not applies(self.config, key):
                continue
            *names, last = key.split(".")
            for depth, name in enumerate(names):
                if section[: depth + 1] != tuple(names[: depth + 1]):
                    lines += [""] * (depth == 0) + [f"{'  ' * depth}{name}:"]
            section = tuple(names)
            lines += _shown_value("  " * len(names), last, get(self.config, key), " ".join(self.sources[key].split()))
        return "\n".join(lines) + "\n"

    def save(self, folder) -> Path:
        """Write show() to config.yaml in a folder, whole or not at all."""
        path = Path(folder) / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(self.show(), encoding="utf-8")
        os.replace(part, path)
        return path


def _shown_value(indent, name, value, source):
    if isinstance(value, list) and any(isinstance(item, str) for item in value) and len(word(value)) > 60:
        return [f"{indent}{name}:  # {source}"] + [f"{indent}  - {word(item)}" for item in value]
    return [f"{f'{indent}{name}: {word(value)}':<40}  # {source}"]
