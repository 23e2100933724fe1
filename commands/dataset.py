"""python run.py dataset: reads, checks, captions and buckets a data set; writes a manifest, a report and a contact sheet."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ..evaluation.vision_language import LocalModel, NoAnswer
from ..training.data import buckets, caption_rules, captions, layouts, manifest, preparation, report
from ..training.data.captioners import Endpoint
from ..training.data.looks import some_frames
from ..training.data.reasons import CODES, ERROR, WARN

ROOT = Path(__file__).resolve().parents[1]
MANIFEST, REPORT, SHEET = "manifest.jsonl", "report.md", "contact_sheet.jpg"
LOOKS, TEXTS = ".looks.jsonl", ".captions.jsonl"  # journals


class Preset(NamedTuple):
    """What a model makes of a data set."""

    buckets: list
    tokens: int        # that its text encoder reads
    fps: float | None  # frames a second that it was trained at
    script: str        # letters that its text encoder knows; "" for any


def presets():
    sana = {name: Preset(buckets.sana(name), caption_rules.GEMMA_TOKENS, None, "") for name in ("512", "1024", "2K", "4K")}
    return {**{f"sana-{name.lower()}": preset for name, preset in sana.items()},
            "sana-video-480p": Preset(buckets.clips((81,), [(480, 832)]), caption_rules.GEMMA_TOKENS, 16, ""),
            "sana-video-720p": Preset(buckets.clips((81,), [(704, 1280)]), caption_rules.GEMMA_TOKENS, 16, ""),
            "sana-video-2.0": Preset(buckets.clips((193,), [(736, 1280)]), caption_rules.GEMMA_TOKENS, 24, ""),
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
    parser.add_argument("--ignore", action="append", default=[], metavar="CODE", choices=[
        code for code, told in CODES.items() if told.severity == WARN], help="a warning that is meant so, as picture.flat; more "
        "than once for several")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="the text encoder's folder: captions' tokens are then "
                        "counted, not estimated")
    parser.add_argument("--frames-to-pictures", type=positive, metavar="SECONDS", help="of each clip, a picture every so often")
    parser.add_argument("--export-captions", type=Path, metavar="FILE", help="write all captions to a CSV file to edit")
    parser.add_argument("--import-captions", type=Path, metavar="FILE", help="take what was edited in it; it wins over all else")
    automatic = parser.add_argument_group("captions for rows that have none")
    automatic.add_argument("--caption", metavar="DIR|URL", help="a folder with a vision-language model, or the address of an "
                           "OpenAI-style server, up to /v1; its key comes from OPENAI_API_KEY")
    automatic.add_argument("--caption-model", default="", metavar="NAME", help="which model, at the server")
    automatic.add_argument("--caption-prompt", default=captions.PROMPT, metavar="TEXT", help="what it is asked")
    automatic.add_argument("--caption-frames", type=int, default=8, metavar="N", help="frames of a clip it is shown (default: 8)")
    automatic.add_argument("--caption-batch", type=int, default=4, metavar="N", help="rows at a time (default: 4)")
    automatic.add_argument("--caption-tokens", type=int, default=256, metavar="N", help="of a caption at most (default: 256)")
    automatic.add_argument("--caption-device", default="", metavar="NAME",
                           help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    automatic.add_argument("--caption-dtype", default="", choices=("", "bf16", "fp16", "fp32"),
                           help="default: bf16 on a GPU, fp32 on a CPU")
    automatic.add_argument("--caption-temperature", type=float, default=0.0, metavar="T",
                           help="0, the default: the likeliest words")
    automatic.add_argument("--seed", type=int, default=0, help="of words that are drawn (default: 0)")
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


def say(text):
    """Print; a file's name that is no UTF-8 is shown with escapes."""
    print(text.encode("utf-8", "backslashreplace").decode(), flush=True)


def prepare(options, log=say) -> int:
    """Do what the options say; returns the exit status. Raises ValueError and OSError for what a person has to put right."""
    preset = presets()[options.model]
    if options.bucket:
        preset = preset._replace(buckets=options.bucket)
    count = token_counter(options.tokenizer)
    captioner = captioner_of(options)
    rows, output = layouts.read_source(options.source, log), options.output
    output.mkdir(parents=True, exist_ok=True)
    items = preparation.items_of(rows, layouts.folder_of(options.source), output)
    preparation.take_looks(items, output, output / LOOKS, progress("files"))
    if options.frames_to_pictures:
        items = preparation.frames_to_pictures(items, options.frames_to_pictures, output, progress("pictures of clips"))
        preparation.take_looks(items, output, output / LOOKS, progress("pictures"))
    rows = [item.row for item in items]
    if (output / MANIFEST).is_file():
        preparation.keep_captions(items, manifest.read(output / MANIFEST), output)
    if options.import_captions:
        log(f"{captions.import_csv(options.import_captions, rows)} captions taken from {options.import_captions}")
    failed = write_captions(items, captioner, options, log) if captioner else False
    mended = preparation.mend(items, options.trigger, output, output / LOOKS) if options.fix else []

    rows = [item.row for item in items]
    script = preset.script or caption_rules.script_of([manifest.captions_of(row) for row in rows])
    preparation.judge(items, preset.buckets, preset.fps,
                      {"limit": preset.tokens, "count": count, "trigger": options.trigger, "script": script}, options.ignore)
    if options.export_captions:
        captions.export_csv(options.export_captions, rows)
    manifest.write(output / MANIFEST, rows)
    report.contact_sheet(rows, lambda number: preparation.thumbnail(items[number], output)).save(output / SHEET, quality=88)
    found = [item.found for item in items]
    about = {"source": str(options.source), "model": options.model, "tokens": "counted" if count else "estimated"}
    text = report.markdown(f"Data set {Path(options.source).name or options.source}", rows, found,
                           [item.place for item in items], about, mended, SHEET)
    (output / REPORT).write_text(text, encoding="utf-8", errors="backslashreplace")
    log("\n".join([*report.summary(rows, found), *([f"{len(mended)} things mended"] if mended else []),
                   f"{output / MANIFEST}, {REPORT} and {SHEET} are written."]))
    return int(failed or any(row.status == ERROR for row in rows))


def progress(what):
    """A bar on a terminal, nothing elsewhere."""
    return lambda things, total=None: tqdm(things, what, total, disable=None, leave=False)


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


def write_captions(items, captioner, options, log) -> bool:
    """Caption rows without a caption; True when some could not be."""
    wanted = [item.row for item in items if not item.look.problem and not item.row.caption_manual
              and not any(text.strip() for text in item.row.captions)]
    for row in wanted:
        row.captions, row.scores = [], []  # a data set's empty ones: the report would call them its own

    def frames(row):
        return some_frames(row, options.output, options.caption_frames)

    try:
        return bool(captions.caption_rows(wanted, frames, captioner, options.caption_prompt, options.output / TEXTS,
                                          progress("captions"), log))
    except NoAnswer as error:
        log(f"Captioning has stopped: {error}")
        return True
