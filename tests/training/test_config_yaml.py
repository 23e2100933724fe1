"""YAML with places, and without YAML 1.1's surprises."""

import pytest
import yaml

from sanacog.training.config_yaml import Layer, merge, read_file, read_text, read_value, remove, scalar, shown, word


@pytest.mark.parametrize("text, value", [
    ("1e-4", 1e-4), ("1E5", 1e5), ("-.5", -0.5), ("3.", 3.0), ("12", 12), ("+3", 3), ("0", 0), ("-0.5e+2", -50.0),
    ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
    ("no", "no"), ("off", "off"), ("yes", "yes"), ("on", "on"), ("y", "y"), ("12:30:00", "12:30:00"),
    ("2024-01-01", "2024-01-01"), ("007", "007"), ("0x10", "0x10"), ("1_000", "1_000"), ("0o17", "0o17"), ("nan", "nan"),
    (".inf", ".inf"), ("1.0.0", "1.0.0"), ("e5", "e5"), ("-", "-"), ("-007.5", "-007.5"),
])
def test_words_are_read_as_in_yaml_1_2(text, value):
    assert scalar(text) == value and type(scalar(text)) is type(value)
    layer = read_text(f"a: {text}" if text != "-" else "a: '-'", "f")
    assert layer.values == {"a": value} and not layer.errors


@pytest.mark.parametrize("value", [
    1e-5, 0.0001, 1.5e-7, 2.0, -3.0, 1e20, 0.1, 1e15, 0, 12, -5, True, False, None, "", "no", "Yes", "off", "1e-4", "null", "~",
    "12:30", "a b", "a: b", "# c", "- x", "[x]", "{x}", "'", '"', "\\", "C:\\new\\table", "line\nnext\ttab\r", "größe", "🙂",
    "\u2028",
    "\x00\x07\x7f", "\ufeff", " lead", "trail ", "*a", "&a", "!x", "%y", "@at", "`", "models/sana-1.5_x", "2024-01-01", "0x10",
    [1, 2.5, "x"], [], [[256, 256], [9, 96, 96]], ["a, b", "c]"],
])
def test_what_is_written_reads_the_same(value):
    text = f"a: {word(value)}\n"
    assert read_text(text, "f").values == {"a": value}
    other = yaml.safe_load(text)["a"]  # and to readers of YAML 1.1
    assert other == value and type(other) is type(value)


def test_places_count_from_one():
    layer = read_text("# first\ntrain:\n  lr: 1e-4\n  betas:\n    - 0.9\n    -   0.95\nx: {y: 1}\n", "f.yaml")
    assert layer.places == {
        "train": "f.yaml:3:3", "train:name": "f.yaml:2:1", "train.lr": "f.yaml:3:7", "train.lr:name": "f.yaml:3:3",
        "train.betas": "f.yaml:5:5", "train.betas:name": "f.yaml:4:3", "train.betas.0": "f.yaml:5:7",
        "train.betas.1": "f.yaml:6:9", "x": "f.yaml:7:4", "x:name": "f.yaml:7:1", "x.y": "f.yaml:7:8", "x.y:name": "f.yaml:7:5"}
    assert layer.place("train.lr") == "f.yaml:3:7"
    assert layer.place("train.lr.deeper") == "f.yaml:3:7"
    assert layer.place("nothing") == "f.yaml"
    part = layer.part("train")
    assert part.values == {"lr": 1e-4, "betas": [0.9, 0.95]} and part.place("betas.1") == "f.yaml:6:9"


@pytest.mark.parametrize("text, place, told", [
    ("a: 1\nb: 2\na: 3\n", "f:3:1", "a: stands twice, first in line 1. Take one of them out."),
    ("t:\n  a: 1\n  a: 1\n", "f:3:3", "t.a: stands twice, first in line 2. Take one of them out."),
    ("a: !!python/name:os.system\n", "f:1:4",
     "a: found the tag tag:yaml.org,2002:python/name:os.system. Tags are not read: write the value alone."),
    ("b: &b {x: 1}\na:\n  <<: *b\n", "f:3:3", "a: found YAML's merge key <<. Use `extends:` with a file instead."),
    ("? [1, 2]\n: 3\n", "f:1:3", "found a list or a section in place of a name."),
    ("a: &a [*a]\n", "f:1:4", "a.0: an alias inside what it stands for. Write it out."),
    ("a: 1e999\n", "f:1:4", "a: found 1e999, which is more than a number can hold."),
    ("- 1\n", "f:1:1", "found no settings. A file has sections, and in them lines as `lr: 1e-4`."),
    ("a: [1, 2\nb: 3\n", "f:2:2", "no YAML: expected ',' or ']', but got ':'."),
    ("a:\n\tb: 1\n", "f:2:1", "no YAML: found character '\\t' that cannot start any token."),
    ("a: 1\n---\nb: 2\n", "f:2:1", "no YAML: but found another document."),
    ("a: *x\n", "f:1:4", "no YAML: found undefined alias 'x'."),
    ("a: \x00\n", "f", None),
])
def test_what_is_no_settings_is_told_with_its_place(text, place, told):
    errors = read_text(text, "f").errors
    assert len(errors) == 1 and errors[0][0] == place
    assert errors[0][1] == told if told else errors[0][1].startswith("no YAML: ")


def test_an_alias_outside_itself_is_its_value():
    layer = read_text("a: &a [1, 2]\nb: *a\n", "f")
    assert layer.values == {"a": [1, 2], "b": [1, 2]} and not layer.errors


def test_files_that_are_no_text(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\n")
    assert read_file(tmp_path / "x.yaml").errors[0][1] == "no text in UTF-8 (byte 3). Save it as UTF-8."
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\n")
    assert read_file(tmp_path / "bom.yaml").values == {"a": 1}
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_file(tmp_path / "empty.yaml") == Layer(shown(tmp_path / "empty.yaml"))
    assert "cannot be read" in read_file(tmp_path).errors[0][1]


def test_values_that_stand_alone():
    assert read_value("2e-4", "train.lr", "here").values == {"train": {"lr": 2e-4}}
    assert read_value("[1, two]", "a", "here").values == {"a": [1, "two"]}
    assert read_value("C:\\x # y: z", "a", "here").values == {"a": "C:\\x # y: z"}
    assert read_value("'1'", "a", "here").values == {"a": "1"}
    assert read_value("{b: {c: 1}}", "a", "here").values == {"a": {"b": {"c": 1}}}
    assert read_value("[1, 2]", "a", "here").place("a.1") == "here"
    assert read_value("[1, 2", "a", "here").errors == [("here", "a: no YAML: expected ',' or ']', but got '<stream end>'.")]
    assert read_value("{b: 1, b: 2}", "a", "here").errors == [("here", "a.b: stands twice, first in line 1. Take one of them out.")]


def test_merging():
    below, above = Layer("b"), Layer("a")
    for key, value in {"t.x": 1, "t.list": [1, 2], "s.y": 1, "s.z": 2}.items():
        below.set(key, value, "below")
    below.places["t.list.0"] = "first"
    above.set("t.list", [3], "above")
    above.set("s", None, "above")
    merge(below, above, {"t.x", "t.list", "s.y", "s.z"})
    assert below.values == {"t": {"x": 1, "list": [3]}}
    assert below.places == {"t.x": "below", "t.list": "above"}
    remove(below.values, ["t", "x"])
    remove(below.values, ["gone", "x"])
    assert below.values == {"t": {"list": [3]}}
