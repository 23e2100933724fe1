"""The report and the contact sheet."""

from typing import NamedTuple

from PIL import Image

from sanacog.training.data import report
from sanacog.training.data.buckets import Bucket
from sanacog.training.data.manifest import Row
from sanacog.training.data.reasons import CODES, Finding


class Place(NamedTuple):
    bucket: Bucket
    enlarged: float
    cropped: float


def row(number, status="ok", kind="image", words=5, **fields):
    return Row(file=f"{number:03}.png", kind=kind, captions=[" ".join(["word"] * words)] if words else [], status=status, **fields)


def page(rows, found, places=()):
    return report.markdown("Data set x", rows, found, list(places), {"source": "a|b"})


def test_an_empty_set_and_a_clean_one():
    assert "0 rows: 0 pictures, 0 clips." in page([], [])
    text = page([row(1), row(2, kind="video", duration=90.0)], [[], []])
    assert "2 rows: 1 pictures, 1 clips (1.5 minutes). 2 are fine, 0 have warnings, 0 have errors" in text
    assert "Nothing." in text and "No row has one." in text and r"- source: a\|b" in text


def test_codes_come_errors_first_and_long_lists_are_cut():
    found = [[Finding("clip.cuts", 1, "at frame 3"), Finding("file.truncated", 0, "cut | off"), Finding("clip.cuts", 1, "again")]
             for _ in range(25)]
    assert list(report.by_code(found)) == ["file.truncated", "clip.cuts"]
    assert report.by_code(found)["clip.cuts"] == list(range(25))
    text = page([row(n, "error") for n in range(25)], found)
    assert text.index("### file.truncated") < text.index("### clip.cuts")
    assert r"- `019.png`: cut \| off" in text and "`020.png`" not in text and "- and 5 more" in text
    lines = report.summary([row(n, "error") for n in range(25)], found)
    assert lines[1].split()[:3] == ["error", "file.truncated", "25"]


def test_buckets():
    small, large = Bucket(1, 64, 96), Bucket(9, 64, 96)
    text = page([row(n) for n in range(4)], [[]] * 4,
                [Place(small, 1.0, 0.1), Place(small, 1.5, 0.3), Place(large, 0.5, 0.0), None])
    assert "| 96 x 64 | 1 | 2 | 1 | 20.0% |" in text and "| 96 x 64 | 9 | 1 | 0 | 0.0% |" in text


def test_where_captions_are_from_and_how_long_they_are():
    rows = [row(1, words=9), row(2, words=10), row(3, words=19), row(4, words=0), row(5, words=5000),
            row(6, words=0, caption_auto={"text": "two words"}), row(7, words=3, caption_manual="one")]
    text = page(rows, [[]] * 7)
    assert "from the data 4, none 1, automatic 1, by hand 1." in text
    lines = {line.split("  ")[0].strip() or line: line for line in text.splitlines() if " .. " in line}
    counts = [(line.split("..")[0].strip(), line.split("..")[1].split("#")[0].split()[-1]) for line in lines.values()]
    assert counts[0] == ("0", "3") and counts[1] == ("10", "2") and counts[-1] == ("300", "1")


def test_all_codes_are_in_the_table():
    lines = report.table_of_codes()
    assert len(lines) == len(CODES) + 2 and all(line.count("|") == 5 for line in lines)


def test_the_sheet_shows_errors_first_and_the_set_evenly():
    rows = [row(n) for n in range(200)] + [row(900, "warn"), row(901, "error")]
    shown = []

    def read(number):
        row = rows[number]
        shown.append(row.file)
        return None if row.status == "error" else Image.new("RGB", (400, 300), "blue")

    sheet = report.contact_sheet(rows, read)
    assert shown[:2] == ["901.png", "900.png"] and len(shown) == report.SHEET_ROWS
    numbers = [int(name[:3]) for name in shown[2:]]
    assert numbers == sorted(set(numbers)) and numbers[-1] > 190
    step = report.THUMBNAIL + report.GAP
    assert sheet.getpixel((report.GAP, report.GAP + 50)) == (255, 0, 0)
    assert sheet.getpixel((report.GAP + step, report.GAP + 50)) == (255, 165, 0)
    assert sheet.getpixel((report.GAP + step + 80, report.GAP + 80)) == (0, 0, 255)
    assert report.contact_sheet([], read).width == sheet.width


def test_captions_in_any_letters_fit():
    rows = [row(1, words=0, caption_manual="\u72d7" * 400), row(2, words=0, caption_manual="x" * 400)]
    report.contact_sheet(rows, lambda _: None)
