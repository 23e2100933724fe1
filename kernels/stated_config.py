"""What a config states of a model, checked before anything is believed of it. For the configs of both families.

A config lies inside the file itself, or is the config.json beside it, which may belong to another model: when the folder
holds several, the file's own name says more.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass

import torch

INSIDE, BESIDE, SHARED = "inside", "beside", "shared"  # storage.Checkpoint.config_place
_PLACES = {INSIDE: "the config inside the file", BESIDE: "the config.json beside it",
           SHARED: "the config.json in its folder, which holds several models"}
_REMEDIES = {INSIDE: "The file was written wrongly: get it again.",
             BESIDE: "Correct that config.json, or take it away.", SHARED: "Correct that config.json, or take it away."}

WHOLE = range(1, 2**16 + 1)   # of every count and width, unless a limit says otherwise
LARGEST = 1e6                 # of every factor


@dataclass(frozen=True)
class Rules:
    """How a config of some model is read. params: the dataclass whose fields it fills; their types are what is allowed.

    limits: field -> range of whole numbers, or the values to choose from. classes: what "_class_name" may begin with.
    """

    params: type
    limits: dict
    classes: tuple[str, ...]


def believed(config: dict | None, place: str, rules: Rules, contradiction, named: dict | None = None,
             where: str = "") -> tuple[dict, tuple[str, ...]]:
    """(those fields of a config that hold for a file, warnings for the log).

    contradiction: fields -> in what they cannot belong to the file's tensors, "" when they can. named: fields as the
    file's name states them, where no tensor does. place: INSIDE, BESIDE or SHARED. where: goes before error messages.
    Raises ValueError for a value of a wrong type or out of range.
    """
    config, place_name = dict(config or {}), _PLACES[place]
    other = config.get("_class_name") or ", ".join(map(str, config.get("architectures") or ())) or config.get("model_type")
    if other and not str(other).startswith(rules.classes):
        return {}, (f"{place_name} is of another model, a {other}: it is ignored",)
    fields = checked(config, rules, place, where)
    if wrong := contradiction(fields):
        return {}, (f"{place_name} is of another model: it is ignored ({wrong})",)
    differing = [f"{field} {value}, the config {fields[field]}" for field, value in (named or {}).items()
                 if field in fields and fields[field] != value]
    if not differing:
        return fields, ()
    said = f"the file's name and {place_name} disagree (the name says {'; '.join(differing)})"
    if place == SHARED:
        return {}, (f"{said}: the name is believed. Give each model a folder of its own with its config.json",)
    return fields, (f"{said}: the config is believed. If the name is right, take the config away",)


def checked(config: dict, rules: Rules, place: str = INSIDE, where: str = "") -> dict:
    """The fields of rules.params that a config has. Raises ValueError, naming field, value and what is allowed."""
    hints, out = typing.get_type_hints(rules.params), {}
    for field in [field.name for field in dataclasses.fields(rules.params) if field.name in config]:
        value, limit = config[field], rules.limits.get(field)
        if not _fits(value, hints[field], limit):
            text = repr(value)
            raise ValueError(f"{where}{_PLACES[place]} says that {field} is {text[:80]}{'...' * (len(text) > 80)}, expected "
                             f"{_words(hints[field], limit)}. {_REMEDIES[place]}")
        out[field] = value
    return out


def read_config_tensor(tensor: torch.Tensor, name: str, where: str = "") -> dict:
    """The config that a saved model keeps as JSON in a tensor of bytes called `name`. Raises ValueError."""
    try:
        config = json.loads(bytes(tensor.flatten().tolist()))
    except (ValueError, TypeError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"{where}its tensor {name} is no config in JSON ({tensor.dtype}, {tuple(tensor.shape)}), which a model "
                         "saved from here has there. The file is damaged: get it again.")
    return config


def _fits(value, hint, limit):
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_fits(value, one, limit) for one in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        if isinstance(value, (list, tuple)):
            return all(_fits(one, inner, limit) for one in value)
        return inner is str and _fits(value, str, limit)  # one for all stages
    if hint is int:
        return type(value) is int and value in (limit or WHOLE)
    if hint is float:
        return type(value) in (int, float) and 0 < value <= LARGEST and math.isfinite(value)
    if hint is str:
        return isinstance(value, str) and (limit is None or value in limit)
    return isinstance(value, hint)


def _words(hint, limit):
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(_words(one, limit) for one in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"a list, each entry {_words(typing.get_args(hint)[0], limit)}"
    if isinstance(limit, tuple):
        return f"one of {', '.join(map(str, limit))}"
    if hint is int:
        return f"a whole number from {(limit or WHOLE)[0]} to {(limit or WHOLE)[-1]}"
    if hint is float:
        return f"a number above 0, at most {LARGEST:,.0f}"
    return {bool: "true or false", str: "a text", types.NoneType: "null"}[hint]
