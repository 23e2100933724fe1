"""The schema for editors and the page's tables are those of the code."""

import json
import re

import pytest

from sanacog.training.config import Config, fields
from sanacog.training.config_files import SHIPPED, variants
from sanacog.training.config_messages import allowed, schema_of
from sanacog.training.config_reference import END, MARK, PAGE, SCHEMA, page, schema, write_page, write_schema

FILES = sorted(SHIPPED.glob("*/*.yaml"))


def test_schema_is_current(tmp_path):
    write_schema(tmp_path / "schema.json")
    assert SCHEMA.read_text("utf-8") == (tmp_path / "schema.json").read_text("utf-8"), "python run.py train --schema"


def test_page_is_current(tmp_path):
    copy = tmp_path / "page.md"
    copy.write_text(PAGE.read_text("utf-8"), "utf-8")
    write_page(copy)
    assert PAGE.read_text("utf-8") == copy.read_text("utf-8"), "python run.py train --schema"


def test_a_page_without_its_place_is_told():
    models, settings = MARK.format("models"), MARK.format("settings")
    for text in ("", models + END, END + models + settings, models + settings, settings + END):
        with pytest.raises(ValueError, match="no lines"):
            page(text)
    assert page(f"a\n{models}{END}b\n{settings}old\n{END}c\n").startswith(f"a\n{models}\n| model.variant |")


def test_every_setting_is_described_and_in_the_table():
    text = PAGE.read_text("utf-8")
    for key, field in fields().items():
        assert field.description, key
        assert f"| `{key.partition('.')[2]}` | " in text


def test_every_preset_is_in_the_table():
    text = PAGE.read_text("utf-8")
    assert all(f"\n| `{name}` | " in text for name in variants())


def test_the_schema_points_only_to_what_it_has():
    made = schema()
    for name in re.findall(r'"#/\$defs/(\w+)"', json.dumps(made)):
        assert name in made["$defs"]
    assert set(made["properties"]) == {*Config.model_fields, "extends", "environments"}
    assert all(part["additionalProperties"] is False for part in made["$defs"].values())
    rate = made["$defs"]["Train"]["properties"]["lr"]["anyOf"]
    assert rate == [{"type": "number", "exclusiveMinimum": 0, "maximum": 10}, {"type": "string", "pattern": r"\$\{"}]
    assert not re.search(r'"(ge|gt|le|lt|only)":', json.dumps(made))


@pytest.mark.parametrize("key, words", [
    ("train.lr", "a number above 0, at most 10"), ("train.steps", "a whole number of 1 or more"),
    ("train.clip", "a number above 0, or null"), ("train.ema", "a number from 0 to below 1, or null"),
    ("train.kind", "one of lora, full, controlnet, sprint"), ("train.gradient_checkpointing", "true or false"),
    ("train.betas", "a list of 2 to 3 (a number from 0 to below 1), or null"),
    ("objective.image_noise", "a list of 2 (a number)"), ("lora.targets", "a list of 1 or more (text)"),
    ("data.workers", "a whole number from 0 to 256"), ("model.frame_step", "one of 4, 8, 16, or null"),
    ("data.frames", "a whole number, or a list of 1 or more (a whole number), or null"), ("data.path", "text, or null"),
])
def test_what_is_allowed_in_words(key, words):
    assert allowed(schema_of(key)) == words


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_files_name_the_schema(path):
    first = path.read_text("utf-8").split("\n")[0]
    assert first == "# yaml-language-server: $schema=../schema.json"
    assert (path.parent / "../schema.json").resolve() == SCHEMA
