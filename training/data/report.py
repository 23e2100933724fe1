"""What was found in a data set, for people: a page in Markdown, and a sheet of small pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .manifest import Row, captions_of
from .reasons import CODES, ERROR, WARN, Finding

LISTED = 20  # files under each code
SHEET_ROWS, COLUMNS = 60, 6
THUMBNAIL, GAP, LINE = 160, 8, 14  # pixels
LINES = 3  # of a caption under a picture
FRAME = {"ok": None, WARN: "orange", ERROR: "red"}
WORDS = 10  # of a bar in the histogram
BAR = 40  # signs of the longest bar


def markdown(title: str, rows: list[Row], found: list[list[Finding]], places: list, about: dict[str, str],
             mended: list[str] = (), sheet: str = "") -> str:
    """The report.

    found, places: a row each; a place is a buckets.Placed or None. about: lines of what was asked for. mended: what --fix
    did. sheet: name of the contact sheet's file, beside the report.
    """
    lines = [f"# {title}", "", *_counts(rows), ""]
    if sheet:
        lines += [f"![The first pictures; red: errors, orange: warnings]({sheet})", ""]
    lines += ["## What was found", "", *_reasons(rows, found)]
    if mended:
        lines += ["## What was mended", "", *(f"- {cell(text)}" for text in mended), ""]
    lines += ["## Buckets", "", *_buckets(places), "", "## Captions", "", *_captions(rows), ""]
    lines += ["## How it was made", "", *(f"- {name}: {cell(value)}" for name, value in about.items()), ""]
    return "\n".join(lines)


def summary(rows: list[Row], found: list[list[Finding]]) -> list[str]:
    """A few lines for the terminal: counts, and each code with the number of its rows, errors first."""
    counts = by_code(found)
    width = max(map(len, counts), default=0)
    return [*_counts(rows), *(f"  {CODES[code].severity:5}  {code:{width}}  {len(numbers):5}  {CODES[code].what}"
                              for code, numbers in counts.items())]


def by_code(found: list[list[Finding]]) -> dict[str, list[int]]:
    """{code: numbers of its rows}: errors first, then in the order of CODES."""
    numbers = {code: [] for code in sorted(CODES, key=lambda code: CODES[code].severity == WARN)}
    for number, findings in enumerate(found):
        for finding in findings:
            if number not in numbers[finding.code][-1:]:
                numbers[finding.code].append(number)
    return {code: rows for code, rows in numbers.items() if rows}


def table_of_codes() -> list[str]:
    """All codes there are, as lines of a Markdown table: docs/dataset.md has it."""
    return ["| code | | what it means | what to do |", "|---|---|---|---|",
            *(f"| `{name}` | {code.severity} | {code.what} | {code.do} |" for name, code in CODES.items())]


def _counts(rows):
    kinds = Counter(row.kind for row in rows)
    status = Counter(row.status for row in rows)
    seconds = sum(row.duration or 0 for row in rows if row.kind == "video")
    clips = f"{kinds['video']} clips" + (f" ({seconds / 60:.1f} minutes)" if seconds else "")
    return [f"{len(rows)} rows: {kinds['image']} pictures, {clips}. {status['ok']} are fine, {status[WARN]} have warnings, "
            f"{status[ERROR]} have errors and are not trained on."]


def _reasons(rows, found):
    counts = by_code(found)
    if not counts:
        return ["Nothing.", ""]
    lines = ["| code | | rows | what it means | what to do |", "|---|---|---|---|---|"]
    lines += [f"| [`{code}`](#{code.replace('.', '')}) | {CODES[code].severity} | {len(numbers)} | {CODES[code].what} | "
              f"{CODES[code].do} |" for code, numbers in counts.items()]
    for code, numbers in counts.items():
        lines += ["", f"### {code}", ""]
        for number in numbers[:LISTED]:
            sentence = next(finding.sentence for finding in found[number] if finding.code == code)
            lines.append(f"- `{rows[number].file}`: {cell(sentence)}")
        if len(numbers) > LISTED:
            lines.append(f"- and {len(numbers) - LISTED} more: see `reasons` in the manifest")
    return [*lines, ""]


def _buckets(places):
    counts = Counter(place.bucket for place in places if place)
    if not counts:
        return ["No row has one."]
    lines = ["| width x height | frames | rows | enlarged | cropped, on average |", "|---|---|---|---|---|"]
    for bucket, count in sorted(counts.items()):
        inside = [place for place in places if place and place.bucket == bucket]
        enlarged = sum(place.enlarged > 1 for place in inside)
        cropped = sum(place.cropped for place in inside) / count
        lines.append(f"| {bucket.width} x {bucket.height} | {bucket.frames} | {count} | {enlarged} | {cropped:.1%} |")
    return lines


def _captions(rows):
    sources = Counter("by hand" if row.caption_manual else "from the data" if row.captions else
                      "automatic" if row.caption_auto else "none" for row in rows)
    lengths = [len(text.split()) for row in rows for text in captions_of(row)]
    lines = ["Rows by where their captions are from: " + ", ".join(f"{name} {count}" for name, count in sources.items()) + "."]
    if not lengths:
        return lines
    bars = Counter(min(length // WORDS, 30) for length in lengths)
    most = max(bars.values())
    lines += ["", "```", "words      captions"]
    for number in range(min(bars), max(bars) + 1):
        upper = f"{WORDS * number + WORDS - 1:3}" if number < 30 else "   "
        lines.append(f"{WORDS * number:3} .. {upper} {bars[number]:6}  {'#' * -(-BAR * bars[number] // most)}")
    return [*lines, "```"]


def cell(text) -> str:
    """A text that neither ends a table's cell or line nor is taken for markup."""
    return "".join(f"\\{sign}" if sign in "|`*_<>[]\\" else sign for sign in " ".join(str(text).split()))


def contact_sheet(rows: list[Row], read: Callable[[int], Image.Image | None]) -> Image.Image:
    """Up to SHEET_ROWS rows as small pictures with their captions, framed by status: errors first, then warnings, the rest
    from all over the set. read: the picture of a row by
    its number, or None where there is none."""
    chosen = [number for status in (ERROR, WARN) for number, row in enumerate(rows) if row.status == status][:SHEET_ROWS // 2]
    fine = [number for number, row in enumerate(rows) if row.status == "ok"]
    free = SHEET_ROWS - len(chosen)
    chosen += fine if len(fine) <= free else [fine[i * len(fine) // free] for i in range(free)]
    height = THUMBNAIL + LINE * (LINES + 1) + GAP
    lines = max(1, -(-len(chosen) // COLUMNS))
    sheet = Image.new("RGB", (GAP + COLUMNS * (THUMBNAIL + GAP), GAP + lines * (height + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for at, number in enumerate(chosen):
        row, picture = rows[number], read(number)
        x, y = GAP + at % COLUMNS * (THUMBNAIL + GAP), GAP + at // COLUMNS * (height + GAP)
        if picture is None:
            draw.line((x, y, x + THUMBNAIL, y + THUMBNAIL), "grey")
        else:
            picture = picture.convert("RGB")
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
            sheet.paste(picture, (x + (THUMBNAIL - picture.width) // 2, y + (THUMBNAIL - picture.height) // 2))
        draw.rectangle((x - 1, y - 1, x + THUMBNAIL, y + THUMBNAIL), outline=FRAME[row.status] or "lightgrey",
                       width=3 if FRAME[row.status] else 1)
        text = [", ".join(row.reasons) or Path(row.file).name, *_wrapped(next(iter(captions_of(row)), ""), font)]
        for line, words in enumerate(text[:LINES + 1]):
            draw.text((x, y + THUMBNAIL + 3 + line * LINE), _cut(words, font), "grey" if line == 0 else "black", font)
    return sheet


def _wrapped(text, font):
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= THUMBNAIL or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _cut(text, font):
    while font.getlength(text) > THUMBNAIL:
        text = text[:-1]
    return text
