"""Rows of a `datasets` set: one that was saved to disk, or one of the Hugging Face Hub, which is downloaded once."""

from __future__ import annotations

from pathlib import Path

from . import contents, tables
from .manifest import Row


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by save_to_disk."""
    there = {name for name in ("dataset_dict.json", "state.json", "dataset_info.json") if (folder / name).is_file()}
    return "dataset_dict.json" in there or {"state.json", "dataset_info.json"} <= there


def rows_of(place: str, name: str, log) -> list[Row]:
    """The rows of the split "train", else of the first. place: the folder, or "hf:NAME@REVISION"; name: what it is called from
    the data set's folder. Raises ValueError where no column has pictures or clips."""
    import datasets  # slow to import, and only these sets need it

    splits = contents.dataset(place)
    split = "train" if "train" in splits else next(iter(splits))
    found = splits[split]
    if others := [other for other in splits if other != split]:
        log(f"{place}: the split {split} is taken, {', '.join(others)} is left out")
    media = {column: "video" if isinstance(feature, datasets.Video) else "image" for column, feature in found.features.items()
             if isinstance(feature, (datasets.Image, datasets.Video))}
    if not media:
        columns = ", ".join(f"{column} ({getattr(feature, 'dtype', type(feature).__name__)})" for column, feature in
                            found.features.items())
        raise ValueError(f"{place}: no column has pictures or clips; it has {columns}. Cast the column to datasets.Image() or "
                         "datasets.Video().")
    conditions = [column for column in media if column in tables.PICTURE[:4]]
    main = min(media, key=lambda column: (media[column] == "image", column in conditions))
    picture = next((column for column in [*conditions, *media] if column != main and media[column] == "image"), None)
    words = found.remove_columns(list(media))
    records = words if words.column_names else ({} for _ in range(len(found)))
    rows = []
    for index, record in enumerate(records):
        captions, scores = tables.captions_and_scores(record)
        rows.append(Row(f"{name}::{split}/{index}/{main}", media[main], captions=captions, scores=scores,
                        image=f"{name}::{split}/{index}/{picture}" if picture else None))
    return rows
