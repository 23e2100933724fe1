"""python run.py dataset: reads, checks, captions and buckets a data set; writes a manifest, a report and a contact sheet."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ..training.data import buckets, caption_rules, captions, checks, layouts, manifest, mending, report
from ..training.data.captioners import CaptionError, Endpoint, LocalModel
from ..training.data.journal import Journal
from ..training.data.looks import Look, look_at, some_frames, source_of
from ..training.data.reasons import ERROR, status_of

ROOT = Path(__file__).resolve().parents[1]
MANIFEST, REPORT, SHEET = "manifest.jsonl", "report.md", "contact_sheet.jpg"
LOOKS, TEXTS = ".looks.jsonl", ".captions.jsonl"  # journals
VERSION = 1  # of the figures in LOOKS: others are taken anew
READERS = 4  # files at a time


class Preset(NamedTuple):
    """What a model makes of a data set."""

    buckets: list
    tokens: int        # that its text encoder reads
    fps: float | None  # frames a second that it was trained at
    script: str        # letters that its text encoder knows; "" for any


def presets():
    sana = {name: Preset(buckets.sana(name), caption_rules.GEMMA_TOKENS, None, "") for name in ("512", "1024", "2K", "4K")}
    return {**{f"sana-{name.lower()}": preset for name, preset in sana.items()},
            "cogvideox": Preset(buckets.COGVIDEOX, caption_rules.T5_TOKENS, 8, "LATIN"),
            "cogvideox-1.5": Preset(buckets.COGVIDEOX_1_5, caption_rules.T5_TOKENS - 2, 16, "LATIN")}


def parser():
    parser = argparse.ArgumentParser(
        prog="run.py dataset", description="Check the pictures and clips of a data set and their captions, write captions "
        "where asked, and say which bucket each goes to. The source stays as it is; what is written goes to --output. Run "
        "again, it goes on where it stopped. Exit status: 0 nothing grave, 1 rows with errors, 2 it could not be read.",
        epilog="docs/dataset.md explains every code of the report.")
    parser.add_argument("source", help="a folder, a manifest.jsonl, a WebDataset tar, a saved data set or a Hugging Face id")
    parser.add_argument("--model", default="sana-1024", choices=tuple(presets()), help="whose sizes, frame rate and text length "
                        "count (default: %(default)s)")
    parser.add_argument("--bucket", action="append", type=bucket, metavar="FxHxW", help="frames x height x width in place of "
                        "the model's; give it more than once for several; 1 frame for pictures")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: output/dataset_NAME of the source")
    parser.add_argument("--trigger", default="", metavar="WORD", help="the word that stands for a subject or style: it has to "
                        "be in every caption")
    parser.add_argument("--fix", action="store_true", help="mend what is safe to, in copies under --output: captions, black "
                        "bars, the same file twice")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="the text encoder's folder: captions' tokens are then "
                        "counted, not estimated")
    parser.add_argument("--frames-to-pictures", type=positive, metavar="SECONDS", help="of each clip, a picture every so often")
    parser.add_argument("--export-captions", type=Path, metavar="FILE", help="write all captions to a CSV file to edit")
    parser.add_argument("--import-captions", type=Path, metavar="FILE", help="take what was edited in it; it wins over all else")
    automatic = parser.add_argument_group("captions for rows that have none")
    automatic.add_argument("--caption", metavar="DIR|URL", help="a folder with a vision-language model, or the address of an "
                           "OpenAI-style server, up to /v1; its key comes from OPENAI_API_KEY")
    automatic.add_argument("--caption-model", default="", metavar="NAME", help="which model, at the server")
    automatic.add_argument("--caption-prompt", default=captions.PROMPT, metavar="TEXT")
    automatic.add_argument("--caption-frames", type=int, default=8, metavar="N", help="frames of a clip it is shown (default: 8)")
    automatic.add_argument("--caption-batch", type=int, default=4, metavar="N", help="rows at a time (default: 4)")
    automatic.add_argument("--caption-tokens", type=int, default=256, metavar="N", help="of a caption at most (default: 256)")
    automatic.add_argument("--caption-device", default="", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    automatic.add_argument("--caption-dtype", default="", choices=("", "bf16", "fp16", "fp32"),
                           help="default: bf16 on a GPU, fp32 on a CPU")
    automatic.add_argument("--caption-temperature", type=float, default=0.0, metavar="T", help="0, the default: the likeliest words")
    automatic.add_argument("--seed", type=int, default=0)
    return parser


def bucket(text):
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not frames x height x width, as 49x480x720")
    return buckets.Bucket(*map(int, text.split("x")))


def positive(text):
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return float(text)


def main(arguments):
    """Prepare a data set; returns the exit status."""
    options = parser().parse_args(arguments)
    name = re.sub(r"[^\w.-]+", "_", Path(options.source).resolve().stem if Path(options.source).exists() else options.source)
    options.output = options.output or ROOT / "output" / f"dataset_{name}"
    try:
        return prepare(options)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


def prepare(options, log=print) -> int:
    """Do what the options say; returns the exit status. Raises ValueError and OSError for what a person has to put right."""
    preset = presets()[options.model]
    if options.bucket:
        preset = preset._replace(buckets=options.bucket)
    count = token_counter(options.tokenizer)
    captioner = captioner_of(options)
    rows = layouts.read_source(options.source, log)
    if not rows:
        raise ValueError(f"{options.source}: there is no picture and no clip in it.")
    options.output.mkdir(parents=True, exist_ok=True)
    base = Path(options.source) if Path(options.source).is_dir() else Path(options.source).parent
    files = {}  # {id of row: path}
    for row in rows:
        files[id(row)] = base / row.file
        row.file = relative(base / row.file, options.output)
    looks = take_looks(rows, files, options.output)
    if options.frames_to_pictures:
        rows, files = frames_to_pictures(rows, files, looks, options)
        looks = take_looks(rows, files, options.output)
    keep_captions(rows, options.output)
    if options.import_captions:
        log(f"{captions.import_csv(options.import_captions, rows)} captions taken from {options.import_captions}")
    failed = write_captions(rows, files, looks, captioner, options, log) if captioner else False
    mended = mend(rows, files, looks, options) if options.fix else []

    script = preset.script or caption_rules.script_of([manifest.captions_of(row) for row in rows])
    rules = {"limit": preset.tokens, "count": count, "trigger": options.trigger, "script": script}
    found, places = judge(rows, looks, preset, rules)
    if options.export_captions:
        captions.export_csv(options.export_captions, rows)
    manifest.write(options.output / MANIFEST, rows)
    sheet = report.contact_sheet(rows, lambda row: thumbnail(row, files, looks))
    sheet.save(options.output / SHEET, quality=88)
    about = {"source": str(options.source), "model": options.model, "tokens": "counted" if count else "estimated",
             "command": "python run.py dataset " + " ".join(map(str, sys.argv[2:] if sys.argv[1:2] == ["dataset"] else ()))}
    text = report.markdown(f"Data set {Path(options.source).name or options.source}", rows, found, places, about, mended, SHEET)
    (options.output / REPORT).write_text(text, encoding="utf-8")
    log("\n".join([*report.summary(rows, found), *([f"{len(mended)} things mended"] if mended else []),
                   f"{options.output / MANIFEST}, {REPORT} and {SHEET} are written."]))
    return int(failed or any(row.status == ERROR for row in rows))


# --- the steps ---


def relative(path, folder):
    """As a manifest in the folder names it; another drive has no such name, and its whole path is taken."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.resolve().as_posix()


def take_looks(rows, files, output) -> dict[int, Look]:
    """{id of row: Look}; the rows get what was seen. Files that have not changed since are not read again."""
    looks = {}
    with Journal(output / LOOKS) as journal, ThreadPoolExecutor(READERS) as pool:
        todo = []
        for row in rows:
            known = journal.get(stamp(files[id(row)]))
            if known:
                looks[id(row)] = Look(**known)
            else:
                todo.append(row)
        try:
            results = pool.map(lambda row: look_at(source_of(files[id(row)]), row.kind), todo)
            for row, look in tqdm(zip(todo, results), "files", len(todo), disable=None, leave=False):
                looks[id(row)] = look
                journal.put(stamp(files[id(row)]), look.to_json())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for row in rows:
        look = looks[id(row)]
        row.sha256, row.width, row.height, row.frames = look.sha256, look.width, look.height, look.frames
        row.fps, row.duration = (look.fps, look.duration) if row.kind == "video" else (None, None)
    return looks


def stamp(path) -> str:
    """What tells that a file is still the one that was looked at."""
    file = Path(str(path).partition("::")[0])
    parts = sorted(path.iterdir()) if path.is_dir() else [file]
    return f"{VERSION} {path.resolve()} " + " ".join(
        f"{part.stat().st_size},{part.stat().st_mtime_ns}" for part in parts if part.exists())


def keep_captions(rows, output):
    """Captions that the manifest in `output` has from a run before, or from a person's hand."""
    if not (output / MANIFEST).is_file():
        return
    before = {row.file: row for row in manifest.read(output / MANIFEST)}
    for row in rows:
        old = before.get(row.file) or before.get(relative(mended_path(row, output), output))
        if old:
            row.caption_manual = row.caption_manual or old.caption_manual
            row.caption_auto = row.caption_auto or old.caption_auto


def token_counter(folder):
    if folder is None:
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError) as error:
        raise ValueError(f"{folder}: there is no tokenizer in it that transformers can read: {error}") from error
    return lambda text: len(tokenizer(text)["input_ids"])


def captioner_of(options):
    if not options.caption:
        return None
    same = {"batch_size": options.caption_batch, "max_tokens": options.caption_tokens, "seed": options.seed,
            "temperature": options.caption_temperature}
    if options.caption.startswith(("http://", "https://")):
        return Endpoint(options.caption, options.caption_model, **same)
    return LocalModel(Path(options.caption), options.caption_device, options.caption_dtype, **same)


def write_captions(rows, files, looks, captioner, options, log) -> bool:
    """Caption rows without a caption; True when some could not be."""
    wanted = [row for row in rows if not looks[id(row)].problem and not row.caption_manual
              and not any(text.strip() for text in row.captions)]
    for row in wanted:
        row.captions = []  # an empty one would win over the automatic one

    def frames(row):
        return some_frames(source_of(files[id(row)]), row.kind, row.frames, options.caption_frames)

    try:
        return bool(captions.caption_rows(wanted, frames, captioner, options.caption_prompt, options.output / TEXTS,
                                          lambda todo: tqdm(todo, "captions", disable=None, leave=False), log))
    except CaptionError as error:
        log(f"Captioning has stopped: {error}")
        return True


def frames_to_pictures(rows, files, looks, options):
    """(rows, files) with pictures in place of clips, written under the output."""
    result, places = [], {}
    for row in tqdm(rows, "pictures of clips", disable=None, leave=False):
        file = files[id(row)]
        if row.kind == "image" or looks[id(row)].problem or file.is_dir():
            new, pictures = [row], [file]
        else:
            folder = options.output / "frames" / f"{copy_name(row)}_{options.frames_to_pictures:g}s"
            pictures = mending.clip_to_pictures(source_of(file), options.frames_to_pictures, folder)
            new = [dataclasses.replace(row, file=relative(path, options.output), kind="image", captions=list(row.captions))
                   for path in pictures]
        result += new
        places.update((id(row), path) for row, path in zip(new, pictures))
    return result, places


def copy_name(row):
    """A name for what is made of a row's file; what it holds is in it, since the same name may stand in several folders."""
    return re.sub(r"[^\w.-]+", "_", Path(row.file).stem) + f"_{row.sha256[:8]}"


def mended_path(row, output):
    return output / "mended" / f"{copy_name(row)}{'.png' if row.kind == 'image' else '.mp4'}"


def mend(rows, files, looks, options) -> list[str]:
    """Mend captions, black bars and repeated files, in place in all three; returns what was done."""
    done = []
    for row in rows:
        done += mending.mend_captions(row, options.trigger)
    for row in list(rows):
        look = looks[id(row)]
        if look.problem or not look.pixels or files[id(row)].is_dir() or not list(checks.black_bars(look)):
            continue
        path = mended_path(row, options.output)
        if not path.exists():
            mending.cropped_copy(source_of(files[id(row)]), row.kind, checks.bars_of(look), path)
        done.append(f"{row.file}: black bars cropped, in {relative(path, options.output)}")
        files[id(row)], row.file = path, relative(path, options.output)
        looks.update(take_looks([row], files, options.output))
    seen = {}
    for row in list(rows):
        key = (row.sha256, tuple(manifest.captions_of(row)))
        if row.sha256 and seen.setdefault(key, row) is not row:
            rows.remove(row)
            done.append(f"{row.file}: left out, the same file and captions as {seen[key].file}")
    return done


def judge(rows, looks, preset, rules):
    """(findings of each row, places); the rows get their status and reasons."""
    looks = [looks[id(row)] for row in rows]
    texts = [row.captions if not row.caption_manual and row.captions else manifest.captions_of(row) for row in rows]
    duplicates = checks.check_duplicates([row.file for row in rows], looks)
    same = caption_rules.check_set(texts)
    found, places = [], []
    for number, (row, look, captions_) in enumerate(zip(rows, looks, texts)):
        findings = [*checks.check_file(look, row.kind), *checks.check_pixels(look, row.kind)]
        place = None
        if not look.problem:
            frames = look.frames if row.kind == "image" or not (preset.fps and row.duration) else max(
                1, int(row.duration * preset.fps + 1e-6))
            try:
                place = buckets.place(dataclasses.replace(row, frames=frames), preset.buckets)
                findings += checks.check_place(place.enlarged, place.cropped, place.bucket)
            except buckets.Unplaced:
                findings += checks.check_unplaced(row.kind, frames, preset.buckets)
        findings += caption_rules.check_row(captions_, **rules)
        findings += itertools.chain(duplicates.get(number, ()), same.get(number, ()))
        row.status, row.reasons = status_of(findings), list(dict.fromkeys(finding.code for finding in findings))
        found.append(findings)
        places.append(place)
    return found, places


def thumbnail(row, files, looks):
    try:
        return some_frames(source_of(files[id(row)]), row.kind, row.frames, 1)[0] if not looks[id(row)].problem else None
    except (OSError, ValueError):
        return None
