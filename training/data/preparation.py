"""From rows to checked rows: look at the files, keep what was done before, mend, judge, place. The steps of `run.py dataset`."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from . import caption_rules, checks, mending
from .buckets import Placed, Unplaced, place
from .contents import HUB, locate, stamp_of
from .journal import Journal
from .looks import Look, look_at, some_frames, without_name
from .manifest import Row, captions_of
from .reasons import Finding, status_of

VERSION = 1  # of the figures of a look: kept ones of another are taken anew
READERS = 4  # files at a time


@dataclass
class Item:
    """A row, named as in a manifest in the output, and what is known of it."""

    row: Row
    look: Look | None = None
    found: list[Finding] = field(default_factory=list)
    place: Placed | None = None


def items_of(rows: list[Row], base: Path, output: Path) -> list[Item]:
    """Rows whose files are named from `base`; they are named from `output`, where their manifest will be, from here on."""
    for row in rows:
        row.file = renamed(row.file, base, output)
        row.image = row.image and renamed(row.image, base, output)
    return [Item(row) for row in rows]


def renamed(file: str, base: Path, output: Path) -> str:
    """A name from `base` as one from `output`. What is on another drive gets its whole path."""
    place, mark, member = file.partition("::")
    if place.startswith(HUB):
        return file
    return relative(base / place, output) + mark + member


def relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path.resolve().as_posix()


# --- what is in the files ---


def take_looks(items: list[Item], output: Path, journal: Path, progress: Callable = lambda things, total=None: things) -> None:
    """Give each item its look, and its row what was seen. Files that have not changed since are not read again."""
    with Journal(journal) as done, ThreadPoolExecutor(READERS) as pool:
        todo = []
        for item in items:
            if known := done.get(key_of(item.row, output)):
                item.look = Look(**known)
            else:
                todo.append(item)
        try:
            looks = pool.map(lambda item: look_at(output, item.row.file, item.row.kind), todo)
            for item, item.look in progress(zip(todo, looks), len(todo)):
                done.put(key_of(item.row, output), item.look.to_json())
        except BaseException:  # Ctrl-C, too
            pool.shutdown(cancel_futures=True)
            raise
    for item in items:
        row, look = item.row, item.look
        row.sha256, row.width, row.height, row.frames = look.sha256, look.width, look.height, look.frames
        row.fps, row.duration = (look.fps, look.duration) if row.kind == "video" else (None, None)


def key_of(row: Row, output: Path) -> str:
    """What tells that a file is still the one that was looked at: its place, size and time of change."""
    place, _, member = row.file.partition("::")
    path = output / place
    if member and (path / "state.json").is_file():  # a saved set of `datasets`, which is written in one go
        stamp = stamp_of(path, "state.json")
    else:
        stamp = stamp_of(output, row.file)
    return f"{VERSION} {place if place.startswith(HUB) else path.resolve()} {member} {stamp}"


def thumbnail(item: Item, output: Path):
    """A frame from the middle as a PIL picture, or None where there is none."""
    try:
        return None if item.look.problem else some_frames(item.row, output, 1)[0]
    except (OSError, ValueError):
        return None


# --- other rows ---


def copy_name(row: Row) -> str:
    """A name for what is made of a row's file; its content is in it, since the same name may stand in several folders."""
    return re.sub(r"[^\w.-]+", "_", Path(row.file).stem) + f"_{row.sha256[:8]}"


def mended_path(row: Row, output: Path) -> Path:
    return output / "mended" / f"{copy_name(row)}{'.png' if row.kind == 'image' else '.mp4'}"


def frames_to_pictures(items: list[Item], seconds: float, output: Path, progress: Callable = lambda things: things) -> list[Item]:
    """Items with pictures in place of clips, a picture every so many seconds, written under the output."""
    result = []
    for item in progress(items):
        if item.row.kind == "image" or item.look.problem or (output / item.row.file).is_dir():
            result.append(item)
            continue
        folder = output / "frames" / f"{copy_name(item.row)}_{seconds:g}s"
        for path in mending.clip_to_pictures(locate(output, item.row.file), seconds, folder):
            row = dataclasses.replace(item.row, file=relative(path, output), kind="image", captions=list(item.row.captions))
            result.append(Item(row))
    return result


def keep_captions(items: list[Item], before: list[Row], output: Path) -> None:
    """Captions that a manifest in `output` has from a run before, or from a person's hand."""
    before = {row.file: row for row in before}
    for row in (item.row for item in items):
        if old := before.get(row.file) or before.get(relative(mended_path(row, output), output)):
            row.caption_manual = row.caption_manual or old.caption_manual
            row.caption_auto = row.caption_auto or old.caption_auto


def square(look: Look) -> bool:
    """Whether a file's pixels are as wide as high: copies say nothing of their shape."""
    return look.pixels["size"] == [look.width, look.height]


def mend(items: list[Item], trigger: str, output: Path, journal: Path) -> list[str]:
    """Mend captions and black bars, and take out what is there twice with the same captions, all in place; returns what was
    done. Copies go to the output."""
    done, seen = [], {}
    for item in list(items):
        row, look = item.row, item.look
        done += mending.mend_captions(row, trigger)
        key = (row.sha256, tuple(captions_of(row)))
        if row.sha256 and seen.setdefault(key, row) is not row:
            items.remove(item)
            done.append(f"{row.file}: left out, the same file and captions as {seen[key].file}")
        elif not look.problem and square(look) and not (output / row.file).is_dir() and (sides := checks.bars_of(look)):
            path = mended_path(row, output)
            if not path.exists():
                mending.cropped_copy(locate(output, row.file), row.kind, sides, path)
            done.append(f"{row.file}: black bars cropped, in {relative(path, output)}")
            row.file = relative(path, output)
            take_looks([item], output, journal)
    return done


# --- judging ---


def judge(items: list[Item], buckets: list, fps: float | None, rules: dict, ignored: Sequence[str] = ()) -> None:
    """Give each item what was found and its place, and its row status and reasons.

    fps: the model's rate, at which clips have as many frames as fit their duration; None for all frames. rules: settings of
    caption_rules.check. ignored: codes that are not told.
    """
    texts = [captions_of(item.row) or item.row.captions for item in items]  # an empty caption is one, too
    looks = [item.look for item in items]
    duplicates = checks.check_duplicates([item.row.file for item in items], looks)
    same = caption_rules.check_set(texts)
    for number, (item, captions) in enumerate(zip(items, texts)):
        row, look = item.row, item.look
        item.found = [*checks.check_file(look, row.kind), *checks.check_pixels(look, row.kind)]
        item.place = None
        if not look.problem:
            try:
                item.place = place(row, buckets, fps)
                item.found += checks.check_place(item.place.enlarged, item.place.cropped, item.place.bucket)
            except Unplaced as error:
                item.found.append(Finding(error.reason, look.frames, without_name(error)))
        item.found += caption_rules.check_row(captions, **rules)
        item.found += [*duplicates.get(number, ()), *same.get(number, ())]
        item.found = [finding for finding in item.found if finding.code not in ignored]
        row.status, row.reasons = status_of(item.found), list(dict.fromkeys(finding.code for finding in item.found))
