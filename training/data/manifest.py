"""Rows of a data set, and manifest.jsonl: one row a line, the form that every later step reads."""

from __future__ import annotations

import difflib
import json
import math
import os
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

NAME = "manifest.jsonl"
KINDS = ("image", "video")
STATUSES = ("ok", "warn", "error")


@dataclass
class Row:
    """One picture or clip.

    file: relative to the manifest's folder, with "/"; "x.tar::name.png" is a member of a tar (contents.py). kind: "image" or
    "video"; a folder of pictures is a video too. sha256: of the content. width, height: pixels as shown, that is rotated
    and with square pixels. fps: the average rate by time stamps. duration: seconds. captions: the data set's own, scores:
    one for each, or none. caption_manual wins over all; caption_auto has text, model, revision, prompt, seed, time. image:
    the first picture for image to video, or the condition for a ControlNet, named as `file` is. repeats: how often the row
    comes in an epoch. status: rows of "error" are not trained on; reasons: codes, e.g. "file.truncated".
    """

    file: str
    kind: str
    sha256: str = ""
    width: int = 0
    height: int = 0
    frames: int = 1
    fps: float | None = None
    duration: float | None = None
    captions: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    caption_manual: str | None = None
    caption_auto: dict | None = None
    image: str | None = None
    repeats: int = 1
    status: str = "ok"
    reasons: list[str] = field(default_factory=list)


_FIELDS = {f.name: f for f in fields(Row)}
_REQUIRED = [name for name, f in _FIELDS.items() if f.default is MISSING and f.default_factory is MISSING]


def captions_of(row: Row) -> list[str]:
    """The captions that are trained on: the manual one, else the data set's, else the automatic one; [] when there is none.

    A caption of white space alone is none.
    """
    automatic = (row.caption_auto or {}).get("text")
    for captions in ([row.caption_manual], row.captions, [automatic]):
        if found := [caption for caption in captions if caption and caption.strip()]:
            return found
    return []


def read(path) -> list[Row]:
    """The rows of a manifest. Empty lines are skipped. Raises FileNotFoundError, and ValueError with "file:line"."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file, expected a manifest. Make one: python run.py dataset FOLDER.")
    rows, lines = [], {}
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = parse(line, f"{path}:{number}")
                    if (first := lines.setdefault(row.file, number)) != number:
                        raise ValueError(f"{path}:{number}: {row.file} has a row already, in line {first}. Keep one of them.")
                    rows.append(row)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None
    return rows


def write(path, rows) -> None:
    """Write a manifest; what does not differ from its default is left out. The file is whole or as it was before."""
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.writelines(line(row) for row in rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def line(row: Row) -> bytes:
    """A row as a line of the manifest, with its end."""
    content = {name: getattr(row, name) for name, f in _FIELDS.items() if name in _REQUIRED or getattr(row, name) != _default(f)}
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # a file name that is not UTF-8: Python holds it as lone surrogates, which only \u can write
        return json.dumps(content, allow_nan=False).encode() + b"\n"


def parse(text: str, place: str) -> Row:
    """The row of one line. place: what an error begins with, "file:line". Raises ValueError."""
    try:
        content = json.loads(text, parse_constant=_no_number, object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: this is no JSON ({error}). Each line must be one object in braces.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{place}: found {text.strip()[:40]}, expected an object in braces with the fields of a row.")
    for key in content:
        if key not in _FIELDS:
            near = difflib.get_close_matches(key, _FIELDS, 1)
            raise ValueError(f"{place}: there is no field {key!r}" + (f", perhaps {near[0]!r}" if near else "") +
                             f". The fields are {', '.join(_FIELDS)}.")
    for name in _REQUIRED:
        if name not in content:
            raise ValueError(f"{place}: the field {name!r} is missing.")
    row = Row(**content)
    for name, (sound, expected) in _SOUND.items():
        if not sound(value := getattr(row, name)):
            raise ValueError(f"{place}: {name} is {value!r}, expected {expected}.")
    if row.scores and len(row.scores) != len(row.captions):
        raise ValueError(f"{place}: {len(row.scores)} scores for {len(row.captions)} captions, expected one for each, or none.")
    return row


def _default(f):
    return f.default_factory() if f.default_factory is not MISSING else f.default


def _no_number(text):
    raise ValueError(f"{text} is no number")


def _no_key_twice(pairs):
    if len(content := dict(pairs)) < len(pairs):
        raise ValueError("a field stands in it twice")
    return content


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value, least) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _texts(value) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _automatic(value) -> bool:
    return value is None or isinstance(value, dict) and isinstance(value.get("text"), str)


_TEXT_OR_NONE = (lambda value: value is None or isinstance(value, str), "a text or null")
_POSITIVE_OR_NONE = (lambda value: value is None or _number(value) and value > 0, "a positive number or null")
_SIZE = (lambda value: _whole(value, 0), "a whole number of pixels")
_COUNT = (lambda value: _whole(value, 1), "a whole number from 1 on")
_SOUND = {
    "file": (lambda value: isinstance(value, str) and value.strip() != "", "the name of a file"),
    "kind": (lambda value: value in KINDS, "image or video"),
    "sha256": (lambda value: isinstance(value, str), "a text"),
    "width": _SIZE, "height": _SIZE, "frames": (lambda value: _whole(value, 0), "a whole number"),
    "fps": _POSITIVE_OR_NONE, "duration": (lambda value: value is None or _number(value) and value >= 0, "seconds or null"),
    "captions": (_texts, "a list of texts"),
    "scores": (lambda value: isinstance(value, list) and all(map(_number, value)), "a list of numbers"),
    "caption_manual": _TEXT_OR_NONE, "caption_auto": (_automatic, 'an object with "text", or null'),
    "image": _TEXT_OR_NONE, "repeats": _COUNT,
    "status": (lambda value: value in STATUSES, "ok, warn or error"), "reasons": (_texts, "a list of texts"),
}
