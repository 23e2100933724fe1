"""Rows from records: lines of metadata.jsonl, .csv and .parquet, JSON beside or within a tar, rows of a `datasets` set."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from .contents import kind_of
from .manifest import Row
from .tree import Tree

ENDINGS = (".jsonl", ".csv", ".parquet")
FILE = ("file_name", "file", "path", "video_file_name", "image_file_name", "video_path", "image_path", "media_path", "video",
        "image")
CAPTION = ("caption", "text", "prompt")
# "caption", "captions", "caption_2", "caption2": not "caption_model", which is about a caption.
_CAPTION = {stem: re.compile(rf"{stem}s?(_?\d+)?", re.IGNORECASE) for stem in CAPTION}
SCORES = ("scores", "clip_scores", "clipscores", "clip_score", "clipscore", "score")
PICTURE = ("first_frame", "conditioning_image", "control_image", "condition", "image", "image_path", "image_file_name")


def records(path: Path) -> Iterator[tuple[str, dict]]:
    """("file:line", record) of a table. Raises ValueError."""
    if path.suffix == ".parquet":
        import pyarrow.parquet  # comes with datasets

        try:
            rows = pyarrow.parquet.read_table(path).to_pylist()
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"{path}: no Parquet file that can be read ({error}). Get it again.") from None
        yield from ((f"{path}: row {number}", row) for number, row in enumerate(rows, 1))
        return
    try:
        with open(path, encoding="utf-8-sig", newline="" if path.suffix == ".csv" else "\n") as file:
            if path.suffix == ".csv":
                lines = csv.DictReader(file, strict=True)
                for row in lines:
                    if None in row or None in row.values():
                        raise ValueError(f"{path}:{lines.line_num}: this line has {'more' if None in row else 'fewer'} columns "
                                         "than the first. Put texts with commas in double quotes.")
                    yield f"{path}:{lines.line_num}", row
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", parse_json(line, f"{path}:{number}")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None
    except csv.Error as error:
        raise ValueError(f"{path}:{lines.line_num}: this is no CSV ({error}). Save the table anew.") from None


def parse_json(text: str | bytes, place: str) -> dict:
    """The object of a JSON text. Raises ValueError that begins with `place`."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: this is no JSON ({error}). Correct or remove it.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{place}: found {str(found)[:40]}, expected an object in braces.")
    return found


def row_of(record: dict, place: str, base: PurePosixPath, tree: Tree) -> Row:
    """The row of a record that names a file.

    base: the table's folder, from the data set's, which files in the record are relative to. tree: the data set's files.
    place: what an error begins with. Raises ValueError.
    """
    def name(file: str) -> str:
        return os.path.normpath(base / file.strip().replace("\\", "/")).replace(os.sep, "/")

    column = next((column for column in FILE if isinstance(record.get(column), str) and record[column].strip()), None)
    if column is None:
        raise ValueError(f"{place}: found {', '.join(map(str, record)) or 'nothing'}, expected a file in one of {', '.join(FILE)}.")
    file = name(record[column])
    picture = next((record[other] for other in PICTURE if other != column and isinstance(record.get(other), str)
                    and record[other].strip()), None)
    captions, scores = captions_and_scores(record)
    row = Row(file, kind_of(file) or "video", captions=captions, scores=scores, image=name(picture) if picture else None,
              repeats=_repeats(record, place))
    if not all(tree.exists(file) for file in (row.file, row.image) if file):
        row.status, row.reasons = "error", ["file.missing"]
    elif kind_of(file) is None and not tree.is_folder(file):
        row.status, row.reasons = "error", ["file.unreadable"]
    return row


def captions_and_scores(record: dict) -> tuple[list[str], list[float]]:
    """The captions of a record, and a score for each or none.

    Captions are in the columns of the first of caption, text and prompt that is there: "caption", "captions", "caption_2", as a
    text or a list of texts, and in any column that has a score of its own ("vila" with "vila_score"). Scores are in such columns,
    or in one such as scores or clip_score.
    """
    stems = (_CAPTION[stem] for stem in CAPTION if any(_CAPTION[stem].fullmatch(str(column)) for column in record))
    stem = next(stems, None)
    captions, columns = [], []
    for column, value in record.items():
        if stem and stem.fullmatch(str(column)) or _own_score(record, column) is not None and not str(column).endswith(SCORES):
            texts = [text for text in _listed(value) if isinstance(text, str)]
            captions += texts
            columns += [column] * len(texts)
    scores = [_own_score(record, column) for column in columns]
    if scores and any(score is not None for score in scores):  # a caption without a score is not drawn while others have one
        return captions, [score or 0.0 for score in scores]
    for column in SCORES:
        scores = [_number(value) for value in _listed(record.get(column))]
        if scores and len(scores) == len(captions) and None not in scores:
            return captions, scores
    return captions, []


def _own_score(record: dict, column) -> float | None:
    """The score of the caption in a column, by the score's column."""
    return next((score for end in SCORES if (score := _number(record.get(f"{column}_{end}"))) is not None), None)


def _listed(value) -> list:
    """A list of what stands in a cell: of a CSV table a list is JSON in brackets."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            return json.loads(value)
        except ValueError:
            pass
    return value if isinstance(value, list) else [] if value is None else [value]


def _number(value) -> float | None:
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return number if number is not None and math.isfinite(number) else None


def _repeats(record: dict, place: str) -> int:
    value = record.get("repeats", record.get("num_repeats"))
    if value in (None, ""):
        return 1
    try:
        if (repeats := int(value)) >= 1 and float(value) == repeats:
            return repeats
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{place}: repeats is {value!r}, expected a whole number from 1 on.")
