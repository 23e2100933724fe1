"""Any usual layout of a data set -> rows. Which layout it was, and what was left out, is said in the log."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from . import contents, hub, manifest, shards, tables
from .contents import kind_of, natural
from .manifest import Row
from .tree import Tree

SIDECARS = (".txt", ".caption")
_HUB_NAME = re.compile(r"(hf:)?[\w.-]+/[\w.-]+(@[\w./-]+)?|hf:[\w.-]+(@[\w./-]+)?")
_KOHYA = re.compile(r"(\d{1,3})_(.+)")  # up to 999: "2024_holiday" is a name, not a number of repeats


def read_source(source, log: Callable[[str], None] = print) -> list[Row]:
    """The rows of a data set, unprobed but for a manifest's: file, kind and what the data set says of it.

    source: a folder in a known layout, a manifest.jsonl, a table (.jsonl, .csv, .parquet), a tar, a list of tars or a pattern for
    them, a folder written by `datasets`, or a set's name on the Hub ("owner/name", "hf:name", "owner/name@revision"). Files are
    named from folder_of(source). Raises FileNotFoundError, ValueError.
    """
    if tars := _tars(source):
        return _taken(source, log, f"WebDataset, {len(tars)} tars", _tar_rows(tars, folder_of(source)))
    path = Path(source)
    if path.is_dir():
        if hub.is_saved(path):
            return _taken(source, log, "saved `datasets` set", hub.rows_of(str(path.resolve()), path.resolve().name, log))
        return _read_folder(path, log)
    if not path.exists():
        if _HUB_NAME.fullmatch(name := Path(source).as_posix()):
            place = contents.HUB + name.removeprefix(contents.HUB)
            log(f"{path}: there is no such folder here, so it is taken for a set of the Hub")
            return _taken(source, log, "`datasets` set of the Hub", hub.rows_of(place, place, log))
        raise FileNotFoundError(f"{path}: there is no such file or folder. Check the path.")
    if path.suffix == ".jsonl" and _is_manifest(path):
        return _taken(source, log, "manifest", manifest.read(path))
    if path.suffix in tables.ENDINGS:
        return _taken(source, log, f"table {path.name}", _table_rows(Tree(path.parent), [path.name]))
    raise ValueError(f"{path}: this is no data set that is known, expected a folder, a manifest.jsonl, a table "
                     f"({', '.join(tables.ENDINGS)}) or a tar. Choose the folder that it lies in.")


def folder_of(source) -> Path:
    """The folder that the names in read_source's rows are relative to."""
    if tars := _tars(source):
        return Path(os.path.commonpath([tar.absolute().parent for tar in tars]))
    path = Path(source)
    return path.resolve().parent if path.is_file() or hub.is_saved(path) else path.absolute()


def _read_folder(folder: Path, log) -> list[Row]:
    tree = Tree(folder)
    found = [(name, read) for name, (seen, read) in _LAYOUTS.items() if seen(tree)]
    if not found:
        kinds = Counter(PurePosixPath(file).suffix.lower() or "no ending" for file in tree.files)
        there = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common(8)) or "nothing"
        raise ValueError(f"{folder}: found {there}, and no layout that is known. Known are: {'; '.join(_LAYOUTS)}.")
    name, read = found[0]
    rows = read(tree)
    others = [other for other, _ in found[1:] if other != _BARE and not (other == _STEM and name in _WITH_STEM)]
    if others:
        log(f"{folder}: it could also be read as {', '.join(others)}; {name} is taken: lists of files go before names alone")
    used = {row.file for row in rows} | {row.image for row in rows}
    if left := [file for file in tree.media if file not in used and not any(str(p) in used for p in PurePosixPath(file).parents)]:
        log(f"{folder}: {len(left)} files are left out, since {name} does not name them, such as {left[0]}")
    if missing := [row.file for row in rows if "file.missing" in row.reasons]:
        log(f"{folder}: {len(missing)} files that {name} names are not there, such as {missing[0]}")
    return _taken(folder, log, name, rows)


def _taken(source, log, name: str, rows: list[Row]) -> list[Row]:
    if not rows:
        raise ValueError(f"{source}: the layout is {name}, and there is no row in it. Check that it is the right folder.")
    log(f"layout: {name}, {len(rows)} file{'s' * (len(rows) != 1)}")
    return rows


# --- layouts: whether it is there, and its rows ---


def _has_manifest(tree) -> bool:
    return manifest.NAME in tree.names and _is_manifest(tree.folder / manifest.NAME)


def _is_manifest(path: Path) -> bool:
    """Whether the first line has what every row of a manifest has; a table for `datasets` has not."""
    if path.name == manifest.NAME:
        return True
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        first = next((line for line in file if line.strip()), "")
    return '"file"' in first and '"kind"' in first


def _manifest_rows(tree) -> list[Row]:
    return manifest.read(tree.folder / manifest.NAME)


def _tables_in(tree) -> list[str]:
    """The metadata tables, one a folder: of several the first by ending."""
    found: dict[str, str] = {}
    for ending in tables.ENDINGS:
        for file in tree.files:
            if PurePosixPath(file).name == f"metadata{ending}":
                found.setdefault(str(PurePosixPath(file).parent), file)
    return sorted(found.values(), key=natural)


def _table_rows(tree, names: list[str]) -> list[Row]:
    rows: dict[str, Row] = {}
    for name in names:
        base = PurePosixPath(name).parent
        for place, record in tables.records(tree.folder / name):
            _add(rows, tables.row_of(record, place, base, tree), place)
    return list(rows.values())


def _add(rows: dict[str, Row], row: Row, place: str) -> None:
    """Add a row; one for a file that has a row already gives that one more captions."""
    known = rows.setdefault(row.file, row)
    if known is row:
        return
    if (known.image, known.repeats, bool(known.scores)) != (row.image, row.repeats, bool(row.scores)):
        raise ValueError(f"{place}: {row.file} has a row already, with another picture, other repeats, or scores for one of them "
                         "alone. Keep one of them.")
    for number, caption in enumerate(row.captions):
        if caption not in known.captions:
            known.captions.append(caption)
            known.scores += row.scores[number : number + 1]


def _thudm_lists(tree) -> list[tuple[str, str, str | None]]:
    """(captions, files, first pictures) for every folder that has them as lists of lines."""
    found = []
    for folder in ["", *sorted(f"{folder}/" for folder in tree.folders)]:
        prompts = next((folder + name for name in ("prompts.txt", "prompt.txt") if folder + name in tree.names), None)
        lists = [folder + name for name in ("videos.txt", "images.txt") if folder + name in tree.names]
        if prompts and lists:
            found.append((prompts, lists[0], lists[1] if len(lists) > 1 else None))
    return found


def _thudm_rows(tree) -> list[Row]:
    rows: dict[str, Row] = {}
    for prompts, files, pictures in _thudm_lists(tree):
        base = PurePosixPath(prompts).parent
        columns = {name: tree.read(name).rstrip().splitlines() for name in (prompts, files, pictures) if name}
        if len({len(lines) for lines in columns.values()}) > 1:
            counts = ", ".join(f"{name} has {len(lines)}" for name, lines in columns.items())
            raise ValueError(f"{tree.folder / base}: these lists must have as many lines as each other: {counts}.")
        for number, parts in enumerate(zip(*columns.values()), 1):
            if not parts[1].strip():
                raise ValueError(f"{tree.folder / files}:{number}: this line is empty, expected a file.")
            names = [str(base / part.strip().replace("\\", "/")) for part in parts[1:]]
            row = Row(names[0], kind_of(names[0]) or "video", captions=[parts[0].strip()], image=names[1] if pictures else None)
            _add(rows, _checked(row, tree), f"{tree.folder / files}:{number}")
    return list(rows.values())


def _checked(row: Row, tree) -> Row:
    if not all(tree.exists(file) for file in (row.file, row.image) if file):
        row.status, row.reasons = "error", ["file.missing"]
    return row


def _sat_folders(tree) -> list[str]:
    """The folders that hold videos/ and labels/."""
    parents = (folder.removesuffix("videos") for folder in tree.folders if PurePosixPath(folder).name == "videos")
    return sorted(parent for parent in parents if f"{parent}labels" in tree.folders)


def _sat_rows(tree) -> list[Row]:
    rows = []
    for parent in _sat_folders(tree):
        for file in tree.media:
            if file.startswith(f"{parent}videos/"):
                label = parent + "labels/" + str(PurePosixPath(file.removeprefix(f"{parent}videos/")).with_suffix(".txt"))
                captions = (tree.read(label).splitlines() or [""])[:1] if label in tree.names else []
                rows.append(Row(file, kind_of(file), captions=captions))
    return rows


def _nvlabs_files(tree) -> list[str]:
    return [file for file in tree.files if PurePosixPath(file).name == "meta_data.json"]


def _nvlabs_rows(tree) -> list[Row]:
    rows: dict[str, Row] = {}
    for file in _nvlabs_files(tree):
        base, place = PurePosixPath(file).parent, tree.folder / file
        names = tables.parse_json(tree.read(file), str(place)).get("img_names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{place}: expected \"img_names\", a list of names. Correct it, or remove the file.")
        by_stem = {str(PurePosixPath(media).with_suffix("")): media for media in tree.media}
        for name in names:
            name = str(base / name)
            name = name if kind_of(name) else by_stem.get(name, name)
            text = str(PurePosixPath(name).with_suffix(".txt"))
            captions = (tree.read(text).splitlines() or [""])[:1] if text in tree.names else []
            _add(rows, _checked(Row(name, kind_of(name) or "image", captions=captions), tree), str(place))
    return list(rows.values())


def _is_kohya(tree) -> bool:
    return bool(tree.media) and all("/" in file and _KOHYA.fullmatch(file.partition("/")[0]) for file in tree.media)


def _kohya_rows(tree) -> list[Row]:
    """Same-stem captions, else the name of the folder; the number before it is the repeats."""
    rows = _stem_rows(tree)
    for row in rows:
        repeats, name = _KOHYA.fullmatch(row.file.partition("/")[0]).groups()
        row.repeats, row.captions = max(1, int(repeats)), row.captions or [name]
    return rows


def _stem_captions(tree) -> dict[str, str]:
    """{media file or folder of pictures: the file with its caption}."""
    stems: dict[str, str] = {}
    for ending in SIDECARS:
        for file in tree.files:
            if file.endswith(ending):
                stems.setdefault(file.removesuffix(ending), file)
    pictured = {str(PurePosixPath(file).parent) for file in tree.media if kind_of(file) == "image"}
    found = {folder: stems[folder] for folder in pictured if folder in stems}
    return found | {file: stems[stem] for file in tree.media if (stem := str(PurePosixPath(file).with_suffix(""))) in stems}


def _stem_rows(tree) -> list[Row]:
    captions = _stem_captions(tree)
    clips = {place for place in captions if place in tree.folders}
    rows = [Row(folder, "video", captions=[tree.read(captions[folder]).rstrip("\r\n")]) for folder in clips]
    rows += [Row(file, kind_of(file), captions=[tree.read(captions[file]).rstrip("\r\n")] if file in captions else [])
             for file in tree.media if str(PurePosixPath(file).parent) not in clips]
    return sorted(rows, key=lambda row: natural(row.file))


def _tar_files(tree) -> list[Path]:
    return [tree.folder / file for file in tree.files if file.endswith(".tar")]


def _tar_rows(tars: list[Path], folder: Path) -> list[Row]:
    return [row for tar in tars for row in shards.rows_of(tar, Path(os.path.relpath(tar, folder)).as_posix())]


_STEM, _BARE = "same-stem captions", "files without captions"
_WITH_STEM = ("kohya N_name folders", "NVlabs meta_data.json")  # whose own captions are of that kind
# In the order of choice: what names its files goes before what is told from names alone.
_LAYOUTS: dict[str, tuple] = {
    "manifest.jsonl": (_has_manifest, _manifest_rows),
    "metadata.jsonl, .csv or .parquet": (_tables_in, lambda tree: _table_rows(tree, _tables_in(tree))),
    "NVlabs meta_data.json": (_nvlabs_files, _nvlabs_rows),
    "THUDM prompts.txt and videos.txt": (_thudm_lists, _thudm_rows),
    "SAT videos/ and labels/": (_sat_folders, _sat_rows),
    "kohya N_name folders": (_is_kohya, _kohya_rows),
    _STEM: (_stem_captions, _stem_rows),
    _BARE: (lambda tree: tree.media, _stem_rows),
    "WebDataset tars": (_tar_files, lambda tree: _tar_rows(_tar_files(tree), tree.folder)),
}


def _tars(source) -> list[Path]:
    """The tars that a source names, [] when it names something else. Raises FileNotFoundError."""
    if isinstance(source, (list, tuple)):
        tars = [Path(item) for item in source]
        if strange := [tar for tar in tars if tar.suffix != ".tar"]:
            raise ValueError(f"{strange[0]}: of a list of sources each must be a .tar. Give one folder, or tars alone.")
    elif Path(source).suffix == ".tar" and not Path(source).is_dir():
        pattern = any(sign in str(source) for sign in "*?[") and not Path(source).exists()
        tars = [Path(name) for name in sorted(glob.glob(str(source)), key=natural)] if pattern else [Path(source)]
        if not tars:
            raise FileNotFoundError(f"{source}: no file has a name of this pattern.")
    else:
        return []
    for tar in tars:
        if not tar.is_file():
            raise FileNotFoundError(f"{tar}: there is no such file, expected a tar.")
    return tars
