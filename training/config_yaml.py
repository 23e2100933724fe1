"""YAML as the settings are written in: values with the place of each, and none of YAML 1.1's surprises.

Plain words are numbers, true, false and null as YAML 1.2 reads them: 1e-4 is a number, and no, off, 12:30 and 2024-01-01 are
text. A key that stands twice is an error, not a silent choice.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]

_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None, "true": True, "True": True, "TRUE": True,
          "false": False, "False": False, "FALSE": False}
_TAGS = {"tag:yaml.org,2002:" + name for name in (
    "null", "bool", "int", "float", "str", "seq", "map", "timestamp", "value", "merge")}


@dataclass
class Layer:
    """What one place gives: nested values, and where each stands. places: {dotted key: place}, of sections and list items too;
    with ":name" behind the key, where its name stands, with ":empty" whether nothing stands behind it. errors: (place, text)."""

    name: str
    values: dict = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    errors: list[tuple[str, str]] = field(default_factory=list)

    def set(self, key: str, value, place: str) -> None:
        """Put a value at a dotted key, with the same place for all that it holds."""
        at = self.values
        *sections, last = key.split(".")
        for name in sections:
            at = at.setdefault(name, {})
        at[last] = value
        self.places[key] = place

    def part(self, *keys: str) -> Layer:
        """The layer that lies below a section."""
        values, start = self.values, ".".join(keys) + "."
        for key in keys:
            values = values[key]
        return Layer(self.name, values, {key[len(start):]: at for key, at in self.places.items() if key.startswith(start)})

    def place(self, key: str) -> str:
        """Where a key stands, or the nearest that holds it."""
        while key not in self.places and "." in key:
            key = key.rpartition(".")[0]
        return self.places.get(key, self.name)


def scalar(text: str):
    """A plain word -> number, True, False, None or the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _WHOLE.fullmatch(text):
        return int(text)
    # 007 is no number: YAML 1.1 would take it for octal, and a name may look so.
    if _NUMBER.fullmatch(text) and not re.match(r"[-+]?0[0-9]", text):
        return float(text)
    return text


def word(value) -> str:
    """A value as YAML in one line, which every version of YAML reads the same way."""
    if isinstance(value, list):
        return "[" + ", ".join(word(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{word(name)}: {word(item)}" for name, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
    if isinstance(value, int):
        return str(value)
    if re.fullmatch(r"[A-Za-z_/][\w/.+@-]*", value) and isinstance(scalar(value), str) and value.lower() not in (
            "yes", "no", "on", "off", "y", "n"):
        return value
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    text = "".join(escapes.get(c) or (c if c.isprintable() else f"\\U{ord(c):08x}") for c in value.replace("${", "\\${"))
    return f'"{text}"'


def shown(path: Path) -> str:
    """A path for messages: of the pack's files below the pack, others as below the working directory where they are."""
    path = Path(path).absolute()
    for base in (Path.cwd(), ROOT):
        try:
            return path.relative_to(base).as_posix()
        except ValueError:
            pass
    return str(path)


def read_file(path: Path) -> Layer:
    """The layer of a file. Nothing is raised: what is wrong with it is in `errors`."""
    name = shown(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return Layer(name, errors=[(name, f"no text in UTF-8 (byte {error.start}). Save it as UTF-8.")])
    except OSError as error:
        return Layer(name, errors=[(name, f"cannot be read: {error.strerror or error}.")])
    return read_text(text, name)


def read_text(text: str, name: str) -> Layer:
    """The layer of a YAML text; see read_file."""
    layer = Layer(name)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        layer.errors.append((_at(name, mark) if mark else name, f"no YAML: {error.problem or error.context}."))
        return layer
    except (yaml.YAMLError, RecursionError) as error:
        layer.errors.append((name, f"no YAML: {' '.join(str(error).split())}."))
        return layer
    if node is None:
        return layer
    if not isinstance(node, yaml.MappingNode):
        told = "found no settings. A file has sections, and in them lines as `lr: 1e-4`."
        layer.errors.append((_at(name, node.start_mark), told))
        return layer
    _Reader(layer).read(node, "")
    return layer


def read_value(text: str, key: str, place: str) -> Layer:
    """The layer of one value that stands alone, on a command line or in the environment. Only [..], {..} and quoted text are
    read as YAML; anything else is one word, colons and # and all."""
    layer = Layer(place)
    if not text.lstrip().startswith(("[", "{", '"', "'")):
        layer.set(key, scalar(text.strip()), place)
        return layer
    inner = read_text(f"x: {text}", place)
    layer.errors = [(place, key + told[1:] if told.startswith(("x:", "x.")) else f"{key}: {told}") for _, told in inner.errors]
    layer.set(key, inner.values.get("x"), place)
    return layer


def merge(into: Layer, layer: Layer, settings) -> None:
    """Lay a layer over another, places too. settings: the dotted keys that are no sections."""
    def walk(below, above, prefix):
        for name, value in above.items():
            key = prefix + name
            if isinstance(value, dict) and isinstance(below.get(name), dict):
                walk(below[name], value, f"{key}.")
                continue
            into.places = {at: place for at, place in into.places.items() if at != key and not at.startswith(f"{key}.")}
            if value is None and key not in settings:
                below.pop(name, None)
            elif isinstance(value, dict):
                below[name] = {}
                walk(below[name], value, f"{key}.")
            else:
                below[name] = value
                into.places[key] = layer.place(key)
                into.places |= {at: place for at, place in layer.places.items() if at.startswith(f"{key}.")}

    walk(into.values, layer.values, "")


def remove(values: dict, names: list[str]) -> None:
    """Take out what lies at a path of names, if it is there."""
    for name in names[:-1]:
        values = values.get(name, {})
    values.pop(names[-1], None)


def _at(name: str, mark) -> str:
    return f"{name}:{mark.line + 1}:{mark.column + 1}"


class _Reader:
    """From YAML's nodes to a layer."""

    def __init__(self, layer: Layer):
        self.layer, self.open = layer, []

    def read(self, node, key: str):
        """The value of a node; `key` is where it lies, and its place is noted."""
        if node in self.open:
            self.error(node, key, "an alias inside what it stands for. Write it out.")
            return None
        self.open.append(node)
        try:
            return self.value(node, key)
        finally:
            self.open.pop()

    def value(self, node, key):
        if key:
            self.layer.places[key] = _at(self.layer.name, node.start_mark)
        if node.tag not in _TAGS:
            self.error(node, key, f"found the tag {node.tag}. Tags are not read: write the value alone.")
            return None
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, f"{key}.{index}") for index, item in enumerate(node.value)]
        if node.style is not None:
            return node.value
        if not node.value:
            self.layer.places[f"{key}:empty"] = ""
        value = scalar(node.value)
        if isinstance(value, float) and math.isinf(value):
            self.error(node, key, f"found {node.value}, which is more than a number can hold.")
        return value

    def mapping(self, node, key):
        values, firsts = (self.layer.values if not key else {}), {}
        for name_node, value_node in node.value:
            name, inner = name_node.value, f"{key}.{name_node.value}" if key else str(name_node.value)
            if not isinstance(name_node, yaml.ScalarNode):
                self.error(name_node, key, "found a list or a section in place of a name.")
            elif name == "<<":
                self.error(name_node, key, "found YAML's merge key <<. Use `extends:` with a file instead.")
            elif name in firsts:
                self.error(name_node, inner, f"stands twice, first in line {firsts[name]}. Take one of them out.")
            else:
                firsts[name] = name_node.start_mark.line + 1
                values[name] = self.read(value_node, inner)
                self.layer.places[f"{inner}:name"] = _at(self.layer.name, name_node.start_mark)
        return values

    def error(self, node, key, text):
        self.layer.errors.append((_at(self.layer.name, node.start_mark), f"{key}: {text}" if key else text))
