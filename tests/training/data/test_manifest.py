"""manifest.jsonl: what is written is read again, and what is wrong is named by file and line."""

import json

import pytest

from sanacog.training.data import manifest
from sanacog.training.data.manifest import Row

FULL = Row("a/ü 1.mp4", "video", "ab" * 32, 640, 480, 49, 23.976, 2.0433, ["one", "two"], [28.5, 30.0], "by hand",
           {"text": "by machine", "model": "m", "seed": 1}, "a/first.png", 3, "warn", ["video.rotated"])


def test_round_trip_and_defaults_left_out(tmp_path):
    path, rows = tmp_path / "manifest.jsonl", [FULL, Row("b.png", "image"), Row("x.tar::b.png", "image", captions=["ü"])]
    manifest.write(path, rows)
    assert manifest.read(path) == rows
    lines = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[1]) == {"file": "b.png", "kind": "image"}
    assert "ü" in lines[2]  # for people who edit it
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.jsonl"]


def test_a_name_that_is_not_utf8_and_a_byte_order_mark(tmp_path):
    path, row = tmp_path / "m.jsonl", Row("caf\udce9.png", "image", captions=["line\u2028separator"])
    manifest.write(path, [row])
    assert manifest.read(path) == [row]
    path.write_bytes(b'\xef\xbb\xbf{"file": "a.png", "kind": "image"}\r\n\r\n')
    assert manifest.read(path) == [Row("a.png", "image")]


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.jsonl"
    manifest.write(path, [FULL])

    def rows():
        yield Row("b.png", "image")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        manifest.write(path, rows())
    assert manifest.read(path) == [FULL] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("text, words", [
    ('{"file": "a.png", "kind": "image"', "no JSON"),
    ("[1]", "expected an object"),
    ('{"kind": "image"}', "'file' is missing"),
    ('{"file": "a", "kind": "image", "captoins": []}', "perhaps 'captions'"),
    ('{"file": "a", "kind": "picture"}', "kind is 'picture', expected image or video"),
    ('{"file": "a", "kind": "image", "captions": "text"}', "captions is 'text', expected a list"),
    ('{"file": "a", "kind": "image", "width": 1.5}', "width is 1.5"),
    ('{"file": "a", "kind": "image", "repeats": 0}', "repeats is 0, expected a whole number from 1 on"),
    ('{"file": "a", "kind": "image", "fps": NaN}', "NaN is no number"),
    ('{"file": "a", "kind": "image", "scores": [1], "captions": []}', "1 scores for 0 captions"),
    ('{"file": "a", "kind": "image", "kind": "video"}', "twice"),
    ('{"file": "ok", "kind": "image"}', "a row already, in line 1"),
])
def test_a_bad_line_is_named(tmp_path, text, words):
    path = tmp_path / "m.jsonl"
    path.write_text('{"file": "ok", "kind": "image"}\n\n' + text + "\n")
    with pytest.raises(ValueError) as error:
        manifest.read(path)
    assert str(error.value).startswith(f"{path}:3: ") and words in str(error.value)


def test_no_file_and_no_utf8(tmp_path):
    with pytest.raises(FileNotFoundError, match="run.py dataset"):
        manifest.read(tmp_path / "m.jsonl")
    (tmp_path / "m.jsonl").write_bytes(b'{"file": "\xff\xfe"}')
    with pytest.raises(ValueError, match="UTF-8"):
        manifest.read(tmp_path / "m.jsonl")


def test_which_captions_count():
    auto = {"text": "auto"}
    assert manifest.captions_of(FULL) == ["by hand"]
    assert manifest.captions_of(Row("a", "image", captions=["one", " ", "two"], caption_auto=auto)) == ["one", "two"]
    assert manifest.captions_of(Row("a", "image", captions=[""], caption_auto=auto)) == ["auto"]
    assert manifest.captions_of(Row("a", "image", caption_manual="  ")) == []
