"""Captioning a data set: automatically by a vision-language model, or by hand in a spreadsheet.

What a model has said stands in a journal, a line a caption, written at once: a run goes on from there after any end, kill -9
too.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path

from ...evaluation.vision_language import NoAnswer
from .journal import Journal
from .manifest import Row, captions_of

PROMPT = ("Describe what there is to see in one paragraph of plain sentences: subject, action, surroundings, light, style. "
          "Do not begin with a phrase such as 'The picture shows'.")
FAILURES = 5  # one after the other: then it is not the rows, and the run stops

# --- by a model ---


def caption(captioner, frames: list, prompt: str = PROMPT) -> str:
    """The text of one row's frames."""
    return captioner.captions([frames], prompt)[0]


def caption_rows(rows: list[Row], frames: Callable[[Row], list], captioner, prompt: str, journal: Path,
                 progress: Callable[[Iterable], Iterable] = iter, log: Callable[[str], None] = print) -> dict[str, str]:
    """Give rows their `caption_auto`, in place; returns {file: why} of those that could not be captioned.

    Rows whose `caption_auto` is by this model, revision, prompt and seed already keep it, and so do those that the journal
    has. frames: reads a row's. Raises NoAnswer after FAILURES rows, one after the other, failed.
    """
    about = {"model": captioner.model, "revision": captioner.revision, "prompt": prompt, "seed": captioner.seed}
    failed, failures = {}, 0
    with Journal(journal) as done:
        todo = []
        for row in rows:
            if row.caption_auto and {name: row.caption_auto.get(name) for name in about} == about:
                continue  # before the journal: the text may have been mended since
            if known := done.get(key_of(row, about)):
                row.caption_auto = known
            else:
                todo.append(row)
        steps = iter(progress(todo))
        while batch := list(islice(steps, captioner.batch_size)):
            for row, text in caption_batch(batch, frames, captioner, prompt):
                if isinstance(text, Exception):
                    failed[row.file], failures = str(text), failures + 1
                    log(f"{row.file}: no caption: {text}")
                    if failures >= FAILURES:
                        raise NoAnswer(f"{failures} rows one after the other could not be captioned; the last: {text}")
                    continue
                failures = 0
                row.caption_auto = {"text": text, **about, "time": datetime.now(timezone.utc).isoformat(timespec="seconds")}
                done.put(key_of(row, about), row.caption_auto)
    return failed


def caption_batch(rows, frames, captioner, prompt):
    """(row, its text, or the error that it met) for each row; one that fails does not take the others with it."""
    result, ready = [], []
    for row in rows:
        try:
            ready.append((row, frames(row)))
        except (OSError, ValueError) as error:
            result.append((row, error))
    try:
        texts = captioner.captions([pictures for _, pictures in ready], prompt) if ready else []
        result += [(row, text) for (row, _), text in zip(ready, texts)]
    except NoAnswer as error:
        if len(ready) == 1:
            return [*result, (ready[0][0], error)]
        for row, pictures in ready:
            try:
                result.append((row, captioner.captions([pictures], prompt)[0]))
            except NoAnswer as error:
                result.append((row, error))
    return result


def key_of(row: Row, about: dict) -> str:
    """What the journal knows a caption by: the row's content, and how the text was made."""
    return hashlib.sha256(json.dumps([row.sha256 or row.file, about], sort_keys=True).encode()).hexdigest()


# --- by hand, in a spreadsheet ---

COLUMNS = ("file", "caption", "source")


def export_csv(path: Path, rows: list[Row]) -> None:
    """One line a row: file, the caption that counts (of several the first), and whose it is."""
    # The mark at the start makes spreadsheets read it as UTF-8.
    with open(path, "w", newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for row in rows:
            source = "manual" if row.caption_manual else "data" if row.captions else "automatic" if row.caption_auto else ""
            table.writerow([row.file, next(iter(captions_of(row)), ""), source])


def import_csv(path: Path, rows: list[Row]) -> int:
    """Captions that were changed in an exported file become `caption_manual`; an emptied one takes `caption_manual` away.

    Returns how many rows changed. Raises ValueError with the line of a file that is in no row; nothing is changed then.
    """
    by_file, changes = {row.file: row for row in rows}, []
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        first = file.readline()
        file.seek(0)
        table = csv.DictReader(file, delimiter=max(",;\t", key=first.count))  # spreadsheets write what the country wants
        missing = {"file", "caption"} - set(table.fieldnames or ())
        if missing:
            raise ValueError(f"{path}:1: there is no column {' and no column '.join(sorted(missing))}, only "
                             f"{', '.join(table.fieldnames or ()) or 'an empty file'}: export the captions anew and edit that.")
        for line in table:
            if line["file"] not in by_file:
                raise ValueError(f"{path}:{table.line_num}: {line['file']!r} is no file of this data set.")
            changes.append((by_file[line["file"]], (line["caption"] or "").strip()))
    changed = 0
    for row, text in changes:
        if text != next(iter(captions_of(row)), "").strip():
            row.caption_manual = text or None
            changed += 1
    return changed
