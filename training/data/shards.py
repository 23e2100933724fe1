"""WebDataset tars: members that share a name up to its first dot make a sample. Read where they lie, nothing is unpacked."""

from __future__ import annotations

import json
from pathlib import Path

from . import contents, tables
from .manifest import Row


def rows_of(tar: Path, name: str) -> list[Row]:
    """The rows of a tar. name: what it is called from the data set's folder.

    Captions come from the sample's .json (columns as in tables.py), else its .txt, .caption or .cap; further ones, and their
    scores, from files beside the tar that begin with its name and map keys to {name: text} or {name: score}, as Sana's data has
    them. A second picture of a sample is its condition, or its first frame beside a video. Raises ValueError.
    """
    samples: dict[str, dict[str, str]] = {}
    for member in contents.members(tar):
        base = member.rpartition("/")[2]
        if base.startswith("."):
            continue
        key = member[: len(member) - len(base)] + base.partition(".")[0]
        samples.setdefault(key, {})[base.partition(".")[2]] = member
    # 00.json and 00_vila.json belong to 00.tar, 001.json does not.
    beside = [_sidecar(path) for path in sorted(tar.parent.glob("*.json")) if path.name.startswith(tar.stem)
              and not path.name[len(tar.stem)].isalnum()]
    rows = []
    for key, files in samples.items():
        media = sorted((end for end in files if contents.kind_of(f"x.{end}")), key=lambda end: (
            contents.kind_of(f"x.{end}") == "image", end.count("."), end))
        if not media:
            continue
        more = [item for sidecar in beside for item in sidecar.get(key, sidecar.get(key.rpartition("/")[2], {})).items()]
        captions, scores = _captions(tar, files, more)
        picture = next((end for end in media[1:] if contents.kind_of(f"x.{end}") == "image"), None)
        rows.append(Row(f"{name}::{files[media[0]]}", contents.kind_of(f"x.{media[0]}"), captions=captions, scores=scores,
                        image=f"{name}::{files[picture]}" if picture else None))
    if not rows:
        raise ValueError(f"{tar}: {len(samples)} samples and no picture or video in them, expected a WebDataset tar.")
    return rows


def _captions(tar: Path, files: dict[str, str], more: list[tuple]) -> tuple[list[str], list[float]]:
    record = {}
    if "json" in files:
        record = tables.parse_json(contents.locate(tar.parent, f"{tar.name}::{files['json']}"), f"{tar}::{files['json']}")
    captions, scores = tables.captions_and_scores(record)
    if not captions:
        for ending in ("txt", "caption", "cap"):
            if ending in files:
                text = contents.locate(tar.parent, f"{tar.name}::{files[ending]}").decode("utf-8-sig", "replace")
                captions, scores = [text.rstrip("\r\n")], []
                break
    texts = {name: value for name, value in more if isinstance(value, str)}
    numbers = {name: value for name, value in more if isinstance(value, (int, float))}
    if numbers:
        own = [next((numbers[name] for name in tables.CAPTION if name in numbers), 0.0)] if len(captions) == 1 else scores
        if len(own) == len(captions):
            return captions + list(texts.values()), [float(n) for n in own] + [float(numbers.get(name, 0.0)) for name in texts]
    return captions + list(texts.values()), scores if not texts else []


def _sidecar(path: Path) -> dict:
    """{key: {name: text or number}} of a JSON file beside a tar; {} of one that has another form."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no JSON that can be read ({error}), expected captions of the tar beside it.") from None
    return {key: value for key, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}
