"""`${...}` in settings: other settings, environment variables, paths of the pack. OmegaConf reads them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator

from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationKeyError, OmegaConfBaseException, UnsupportedInterpolationType

from .config import fields
from .config_messages import nearest
from .config_yaml import ROOT

OmegaConf.register_resolver("pack", lambda path: str(ROOT / path), replace=True)
KINDS = "${section.key}, ${oc.env:NAME,default} and ${pack:PATH}"


def fill_in(values: dict, defaults: dict) -> Iterator[tuple[str, str]]:
    """Put in place of every `${...}` what it stands for. values: nested, changed. defaults: what settings are that nobody gave.

    Yields (dotted key, text) of those that stand for nothing; they are taken out.
    """
    for path, text in list(_variables(values)):
        try:
            OmegaConf.create({"x": text})
        except GrammarParseError:
            _take_out(values, path)
            yield _key(path), f"found {text!r}, which is not written as it should be; allowed: {KINDS}"
    whole = OmegaConf.create(_over(copy.deepcopy(defaults), values))
    for path, text in list(_variables(values)):
        try:
            node = whole
            for name in path:
                node = node[name]
            value = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
            if path in dict(_variables(values)):  # another item of a list may have taken it out
                _put(values, path, value)
        except OmegaConfBaseException as error:
            _take_out(values, path)
            yield _key(path), _told(text, error)


def _told(text: str, error: Exception) -> str:
    first = str(error).split("\n")[0]
    if isinstance(error, InterpolationKeyError):
        name = re.findall(r"'(.*)'", first)[-1]
        return f"found {text!r}: there is no setting {name}{nearest(name, fields())}"
    if isinstance(error, UnsupportedInterpolationType):
        return f"found {text!r}; allowed: {KINDS}"
    if "Recursive" in first or "parent node" in first:
        return f"found {text!r}, which goes in a circle"
    if missing := re.search(r"Environment variable '(.*?)' not found", first):
        name = missing[1]
        return f"found {text!r}: the environment variable {name} is not set. Set it, or give a default: ${{oc.env:{name},default}}"
    return f"found {text!r}: {first}"


def _variables(values, path: tuple = ()) -> Iterator[tuple[tuple, str]]:
    """(path, text) of every text that has a variable, or an escaped one."""
    if isinstance(values, str):
        if "${" in values:
            yield path, values
    elif isinstance(values, (dict, list)):
        for name, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _variables(value, (*path, name))


def _put(values: dict, path: tuple, value) -> None:
    for name in path[:-1]:
        values = values[name]
    values[path[-1]] = value


def _take_out(values: dict, path: tuple) -> None:
    """Take out the setting at a path, or that the item there belongs to."""
    names = [name for name in path if isinstance(name, str)]
    for name in names[:-1]:
        values = values[name]
    values.pop(names[-1], None)


def _over(below: dict, above: dict) -> dict:
    for name, value in above.items():
        below[name] = _over(below[name], value) if isinstance(value, dict) and isinstance(below.get(name), dict) else value
    return below


def _key(path: tuple) -> str:
    return ".".join(map(str, path))
