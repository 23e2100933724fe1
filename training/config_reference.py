"""What the settings are, for editors and for people: configs/schema.json and the table of docs/training_configuration.md.

`python run.py train --schema` writes both.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

from .config import Config, fields, only_of
from .config_files import PRESETS, variants
from .config_messages import allowed, json_schema, schema_of
from .config_yaml import ROOT, read_file, word

SCHEMA = ROOT / "configs" / "schema.json"
PAGE = ROOT / "docs" / "training_configuration.md"
MARK = "<!-- {}: made by python run.py train --schema -->\n"
END = "<!-- end -->\n"


def schema() -> dict:
    """JSON schema (draft 2020-12) of a settings file; `${...}` may stand for any value."""
    made = copy.deepcopy(json_schema())
    for section in made["$defs"].values():
        section["properties"] = {name: _with_variables(field) for name, field in section["properties"].items()}
    made["$defs"]["Model"]["properties"]["variant"]["examples"] = variants()
    sections = made["properties"] = {
        name: {"anyOf": [{"$ref": f"#/$defs/{Config.model_fields[name].annotation.__name__}"}, {"type": "null"}],
               "description": field["description"]} for name, field in made["properties"].items()}
    overlay = {"type": "object", "properties": dict(sections), "additionalProperties": False}
    name = {"type": "string"}
    sections["extends"] = {
        "anyOf": [name, {"type": "array", "items": name}],
        "description": "files that this one goes on from, beside it or shipped (train/sana_lora); of several the later wins"}
    sections["environments"] = {
        "type": "object", "additionalProperties": overlay,
        "description": "what changes in the environment that SANACOG_ENV names"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | made | {"title": "Settings of a training run"}


def _with_variables(field: dict) -> dict:
    """A setting's schema that admits `${...}` too, without what only we read."""
    about = {name: field[name] for name in ("description", "default") if name in field}
    value = {name: inner for name, inner in field.items() if name not in (*about, "title", "only")}
    if "$ref" in value or value.get("type") == "string" and "enum" not in value and "pattern" not in value:
        return about | value
    choices = value["anyOf"] if list(value) == ["anyOf"] else [value]
    return about | {"anyOf": [*choices, {"type": "string", "pattern": r"\$\{"}]}


def table() -> str:
    """All settings as Markdown tables, one a section."""
    lines, section = [], None
    for key, field in fields().items():
        name, _, rest = key.partition(".")
        if name != section:
            section = name
            lines += [""] * bool(lines) + [f"### {name}: {Config.model_fields[name].description}", "",
                                           "| setting | allowed | default | what it is; for which runs |", "|---|---|---|---|"]
        for_whom = "".join(f"; {of} {' or '.join(values)}" for of, values in only_of(field))
        text = field.description.replace("|", "\\|")
        lines.append(f"| `{rest}` | {allowed(schema_of(key))} | `{word(field.default)}` | {text}{for_whom} |")
    return "\n".join(lines) + "\n"


def models() -> str:
    """All presets as a Markdown table."""
    lines = ["| model.variant | model | published as | width x height | frames | steps | guidance | shift |",
             "|---|---|---|---|---|---|---|---|"]
    for name in variants():
        preset = read_file(PRESETS / f"{name}.yaml").values
        model, sampling = preset["model"], preset["sampling"]
        frames = f"{sampling['frames']}, {sampling['fps']:g} a second" if "frames" in sampling else ""
        places = model.get("published", {})
        published = f"`{places.get('diffusers') or places['native']}`" if places else "embedded"
        lines.append(f"| `{name}` | {model['title']} | {published} | {sampling['width']} x {sampling['height']} | {frames} | "
                     f"{sampling['steps']} | {sampling['guidance']:g} | {sampling.get('shift', '')} |")
    return "\n".join(lines) + "\n"


def write_schema(path=SCHEMA) -> None:
    """Write the JSON schema."""
    Path(path).write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")


def page(text: str) -> str:
    """The page with its tables made anew. text: the page as it is. Raises ValueError when it has no place for them."""
    for name, made in (("models", models()), ("settings", table())):
        before, mark, rest = text.partition(MARK.format(name))
        old, end, after = rest.partition(END)
        if not end:
            raise ValueError(f"{PAGE.name}: no lines {mark or MARK.format(name)!r} and {END!r}. Put them where the table belongs.")
        text = f"{before}{mark}\n{made}\n{end}{after}"
    return text


def write_page(path=PAGE) -> None:
    """Write the tables into the page."""
    Path(path).write_text(page(Path(path).read_text(encoding="utf-8")), encoding="utf-8")
