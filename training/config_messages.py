"""What is wrong with settings, in words: what was found, what is allowed, the nearest name."""

from __future__ import annotations

import difflib
from functools import cache

from pydantic import ValidationError

from .config import Config, fields, is_section
from .config_yaml import word


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, a line each: place, key, what was found, what is allowed."""


def closest(name: str, names) -> str | None:
    """The name that was meant, if one is near."""
    written = {known.lower(): known for known in names}
    return next((written[near] for near in difflib.get_close_matches(name.lower(), written, n=1, cutoff=0.6)), None)


def nearest(name: str, names) -> str:
    """`; did you mean 'x'?`, or nothing."""
    return f"; did you mean {near!r}?" if (near := closest(name, names)) else ""


def found(value) -> str:
    """A value as a person wrote it, and what kind of thing it is where that is not plain to see."""
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) <= 60 else f"a text of {len(value)} characters"
    text = word(value)
    return text if len(text) <= 60 else f"a list of {len(value)}"


def schema_of(key: str) -> dict:
    """The JSON schema of a setting, with bounds under JSON schema's own names."""
    at, schema = Config, json_schema()
    *sections, last = key.split(".")
    for name in sections:
        at = at.model_fields[name].annotation
    return schema["$defs"][at.__name__]["properties"][last]


_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


@cache
def json_schema() -> dict:
    """pydantic's schema of Config, not to be changed; bounds of optional numbers with JSON schema's names, as pydantic does not
    write them."""
    def renamed(node):
        if isinstance(node, dict):
            return {_BOUNDS.get(name, name) if isinstance(value, (int, float)) else name: renamed(value)
                    for name, value in node.items()}
        return [renamed(item) for item in node] if isinstance(node, list) else node

    return renamed(Config.model_json_schema())


def allowed(schema: dict) -> str:
    """What a JSON schema admits, in words: "a whole number, 1 or more", "one of lora, full"."""
    if "anyOf" in schema:
        return ", or ".join(allowed(part) for part in sorted(schema["anyOf"], key=lambda part: part.get("type") == "null"))
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    kind = schema.get("type")
    if kind == "array":
        low, high = schema.get("minItems"), schema.get("maxItems")
        count = f"of {low} " if low == high and low else f"of {low} to {high} " if high else f"of {low} or more " if low else ""
        return f"a list {count}({allowed(schema['items'])})"
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(schema)
    return {"null": "null", "boolean": "true or false", "object": "a section"}.get(kind) or (
        "text of letters, digits, spaces and _ . + -, a letter, digit or _ first" if "pattern" in schema else "text")


def _range(schema: dict) -> str:
    """" from 1 to 1000" of a number's JSON schema."""
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    last = "" if high is None and below is None else str(high) if below is None else f"below {below}"
    if low is not None:
        return f" from {low} to {last}" if last else f" of {low} or more"
    return (f" above {above}" if above is not None else "") + (f", at most {last}" if last else "")


def unknown(name: str, section: str, names) -> str:
    """For a key that no setting has. section: "" at the top."""
    key = f"{section}.{name}" if section else name
    every = fields()
    if "." in name and name in every:
        return f"{key}: found a key with dots. In a file it is written as `{name.partition('.')[0]}:`, and below it the rest."
    elsewhere = [repr(known) for known in every if known.rpartition(".")[2] == name]
    there = f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else ""
    hint = nearest(name, names) or there if section else there or nearest(name, names)
    return f"{key}: unknown; {section or 'the top'} has {', '.join(names)}{hint}"


def not_a_section(key: str, section, value) -> str:
    """For a value where a section belongs."""
    return f"{key}: found {found(value)}; allowed: a section with {', '.join(section.model_fields)}"


def of_values(error: ValidationError) -> list[tuple[str, str]]:
    """(dotted key, text) of what pydantic refuses, once a setting or list item."""
    told = {}
    for part in error.errors(include_url=False):
        path, at = [], Config
        for name in part["loc"]:
            if is_section(at):
                path.append(name)
                at = at.model_fields[name].annotation if name in at.model_fields else None
            elif isinstance(name, int):
                path.append(str(name))
        key = ".".join(path)
        if is_section(at):
            told.setdefault(key, not_a_section(key, at, part["input"]))
        else:
            setting, item = _setting(key)
            schema = schema_of(setting)
            for _ in item:
                schema = next((part for part in schema.get("anyOf", [schema]) if part.get("type") == "array"))["items"]
            value = part["input"]
            hint = nearest(value, schema["enum"]) if "enum" in schema and isinstance(value, str) else ""
            if allowed(schema).startswith("text") and isinstance(value, (int, float)):
                hint = "; put it in quotes"
            told.setdefault(key, f"{key}: found {found(value)}; allowed: {allowed(schema)}{hint}")
    # Where an item is told, the list is not told again.
    return [(key, text) for key, text in told.items() if not any(other.startswith(f"{key}.") for other in told)]


def _setting(key: str) -> tuple[str, list[str]]:
    """The setting that a key lies in, and the numbers of the items on the way."""
    names, item = key.split("."), []
    while names[-1].isdigit():
        item.insert(0, names.pop())
    return ".".join(names), item
