"""From YAML files, the environment and the command line to settings that hold, and the source of every value.

Later wins: the preset of the model's variant, files named by `extends`, the file itself, the overlay of the environment that
SANACOG_ENV names, SANACOG__SECTION__KEY, key=value. Sections merge, lists replace, a section set to null is forgotten. Then
`${section.key}`, `${oc.env:NAME,default}` and `${pack:path}` (a path below this pack) are filled in, and all is checked; what
is wrong is told at once.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from . import config_rules as rules
from .config import Config, fields, is_section
from .config_messages import ConfigError, allowed, closest, found, nearest, not_a_section, of_values, schema_of, unknown
from .config_shown import DEFAULT, Loaded
from .config_variables import fill_in
from .config_yaml import ROOT, Layer, merge, read_file, read_value, remove, scalar, shown

SHIPPED = ROOT / "configs"
PRESETS = SHIPPED / "models"
PREFIX, CHOICE = "SANACOG__", "SANACOG_ENV"


def variants() -> list[str]:
    """Names that model.variant may have."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load(files: Iterable[str | Path], overrides: Iterable[str] = (), environ: Mapping[str, str] | None = None,
         complete: bool = True) -> Loaded:
    """Read settings.

    files: paths, or names of shipped files as "train/sana_lora"; later ones win. overrides: "section.key=value".
    environ: of SANACOG_ENV and SANACOG__...; the process's own if None, which `${oc.env:...}` always reads.
    complete: whether all must be there that a run needs, models' and data's paths above all.
    Raises ConfigError, with all that is wrong.
    """
    environ = os.environ if environ is None else environ
    build = _Build(environ.get(CHOICE, ""))
    for file in files:
        build.add_file(str(file))
    build.add_overlays()
    for name in sorted(environ):
        if name.startswith(PREFIX):
            build.add_value(name[len(PREFIX):].lower().replace("__", "."), environ[name], name)
    for override in overrides:
        key, equals, value = override.partition("=")
        place = f"{override} on the command line"
        if not equals or not key.strip():
            build.errors.append((f"{override!r} on the command line", "expected section.key=value, as in train.lr=2e-4"))
        elif not value.strip():
            build.errors.append((place, f"{key.strip()}: nothing behind the =. Write null to clear it"))
        else:
            build.add_value(key.strip(), value, place)
    return build.finish(complete)


class _Build:
    """Layers, lowest first, and errors as they are found."""

    def __init__(self, environment: str):
        self.environment = environment
        self.layers: list[Layer] = []
        self.overlays: list[Layer] = []
        self.environments: set[str] = set()
        self.errors: list[tuple[str, str]] = []
        self.bad: set[str] = set()   # settings whose value is not what was meant
        self.main = "settings"       # the place of what stands nowhere

    # --- files ---

    def add_file(self, name: str) -> None:
        path = _find(Path(name), Path.cwd())
        if path is None:
            shipped = f"configs/{name.removesuffix('.yaml')}.yaml"
            self.errors.append((name, f"no such file, nor {shipped} in the pack{_similar(name)}"))
            return
        self.main = shown(path)
        self.read(path, ())

    def read(self, path: Path, chain: tuple[Path, ...]) -> None:
        """Add a file's bases, then the file."""
        layer = read_file(path)
        self.errors += layer.errors
        for base, place in self.bases(layer):
            found_at = _find(Path(base), path.parent)
            if found_at is None:
                told = f"extends: {base!r} is no file beside this one, nor a shipped one{_similar(base)}"
                self.errors.append((place, told))
            elif found_at in (*chain, path):
                circle = [*chain, path][[*chain, path].index(found_at):]
                self.errors.append((place, "extends: a circle: " + " -> ".join(map(shown, [*circle, found_at]))))
            else:
                self.read(found_at, (*chain, path))
        self.take_overlays(layer, path)
        if path.parent.resolve() == PRESETS:  # only names the variant: presets lie below all else, see finish
            chosen = Layer(layer.name)
            chosen.set("model.variant", path.stem, layer.place("model.variant"))
            layer = chosen
        self.layers.append(layer)

    def bases(self, layer: Layer) -> list[tuple[str, str]]:
        """(name, place) of every file that a layer extends."""
        bases = layer.values.pop("extends", None)
        several = bases if isinstance(bases, list) else [] if bases is None else [bases]
        places = [layer.place(f"extends.{index}") for index in range(len(several))]
        for base, place in zip(several, places):
            if not isinstance(base, str):
                self.errors.append((place, f"extends: found {found(base)}; allowed: the name of a file, or a list of names"))
        return [(base, place) for base, place in zip(several, places) if isinstance(base, str)]

    # --- environments ---

    def take_overlays(self, layer: Layer, path: Path) -> None:
        """Take `environments:` out of a file's layer, and the files NAME.ENVIRONMENT.yaml beside it."""
        inside = layer.values.get("environments")
        if inside is not None and not isinstance(inside, dict):
            told = f"environments: found {found(inside)}; allowed: a section of each environment"
            self.errors.append((layer.place("environments"), told))
            inside = None
        for name, values in (inside or {}).items():
            self.environments.add(name)
            place = layer.place(f"environments.{name}")
            if isinstance(values, dict):
                self.take_overlay(name, layer.part("environments", name), f"environments.{name}.")
            elif values is not None:
                self.errors.append((place, f"environments.{name}: found {found(values)}; allowed: sections as in a file"))
        layer.values.pop("environments", None)
        for beside in sorted(path.parent.glob(f"{path.stem}.*{path.suffix}")):
            name = beside.stem[len(path.stem) + 1:]
            self.environments.add(name)
            if name == self.environment:
                overlay = read_file(beside)
                self.errors += overlay.errors
                self.take_overlay(name, overlay, "")

    def take_overlay(self, name: str, overlay: Layer, where: str) -> None:
        for key in ("extends", "environments"):
            if overlay.values.pop(key, None) is not None:
                self.errors.append((overlay.place(key), f"{where}{key}: not in an overlay; put it in the file itself"))
        if name == self.environment:
            self.overlays.append(overlay)
        else:
            self.check(overlay, note=False)

    def add_overlays(self) -> None:
        if self.environment and self.environment not in self.environments:
            known = ", ".join(sorted(self.environments))
            self.errors.append((CHOICE, f"found {self.environment!r}; " + (
                f"allowed: {known}{nearest(self.environment, self.environments)}" if known else
                f"the files have no environments. Unset it, or write `environments:` with {self.environment}: in the file")))
        self.layers += self.overlays

    # --- values ---

    def add_value(self, key: str, text: str, place: str) -> None:
        layer = Layer(place)
        if key in fields() and _is_text(key):
            layer.set(key, None if scalar(text) is None else text.strip(), place)
            if text.strip()[:1] in ("'", '"'):
                layer = read_value(text.strip(), key, place)
        else:
            layer = read_value(text, key, place)
        self.errors += layer.errors
        if not layer.errors:
            self.layers.append(layer)

    def check(self, layer: Layer, note: bool = True) -> None:
        """Take out of a layer what is no setting, and say so."""
        def walk(values, section, prefix):
            for name in list(values):
                key, value = prefix + name, values[name]
                if name not in section.model_fields:
                    names = list(section.model_fields) + ["extends", "environments"] * (not prefix)
                    self.errors.append((layer.place(f"{key}:name"), unknown(name, prefix.rstrip("."), names)))
                    if note and (close := closest(name, section.model_fields)):
                        is_setting = f"{prefix}{close}" in fields()
                        self.bad |= {f"{prefix}{close}"} if is_setting else {f"{close}."} if isinstance(value, dict) else set()
                    del values[name]
                elif value is None and f"{key}:empty" in layer.places and is_section(section.model_fields[name].annotation):
                    del values[name]  # its lines are comments; only a null that is written makes forget
                elif is_section(inner := section.model_fields[name].annotation):
                    if isinstance(value, dict):
                        walk(value, inner, f"{key}.")
                    elif value is not None:
                        self.errors.append((layer.place(key), not_a_section(key, inner, value)))
                        del values[name]
                elif isinstance(value, dict):
                    self.errors.append((layer.place(key), f"{key}: found a section; allowed: {allowed(schema_of(key))}"))
                    self.bad |= {key} if note else set()
                    del values[name]

        walk(layer.values, Config, "")

    def finish(self, complete: bool) -> Loaded:
        for layer in self.layers:
            self.check(layer)
        preset = self.preset()
        merged = Layer(self.main)
        for layer in [*preset, *self.layers]:
            merge(merged, layer, fields())
        for key, text in fill_in(merged.values, Config().model_dump()):
            self.wrong(merged, key, text)
        config = self.validated(merged)
        given = {key: key in merged.places for key in fields()}
        if config.model.family is None:
            if not {"model.family", "model.variant"} & self.bad:
                self.wrong(merged, "model.family", "nothing given. Name a released model, as in "
                                                   f"model.variant={variants()[0]}, or the family: sana, sana_video or cogvideox")
        elif preset and (family := preset[0].values.get("model", {}).get("family")) != config.model.family:
            self.wrong(merged, "model.family", f"found {config.model.family}; the variant {config.model.variant} is of {family}. "
                                               "Take one of them out")
        else:
            told = [*rules.agree(config), *rules.only_for(config, given.get), *(rules.needs(config) if complete else ())]
            for key, text in told:
                if not any(name in f"{key} {text}" for name in self.bad):
                    self.errors.append((merged.place(key), f"{key}: {text}"))
        if self.errors:
            raise ConfigError("\n".join(dict.fromkeys(f"{place}: {text.rstrip('.')}{'' if text.endswith('?') else '.'}"
                                                      for place, text in self.errors)))
        return Loaded(config, {key: merged.places.get(key, DEFAULT) for key in fields()})

    def preset(self) -> list[Layer]:
        """The layer of the variant that the layers above choose."""
        merged = Layer(self.main)
        for layer in self.layers:
            merge(merged, layer, fields())
        values = copy.deepcopy(merged.values)
        list(fill_in(values, Config().model_dump()))  # what stands for nothing is told when all is filled in
        name = values.get("model", {}).get("variant")
        if not isinstance(name, str):
            return []
        if name not in variants():
            self.wrong(merged, "model.variant", f"found {name!r}; allowed: {', '.join(variants())}{nearest(name, variants())}")
            return []
        layer = read_file(PRESETS / f"{name}.yaml")
        self.errors += layer.errors
        self.check(layer)
        return [layer]

    def wrong(self, merged: Layer, key: str, text: str) -> None:
        self.bad.add(key)
        self.errors.append((merged.place(key), f"{key}: {text}"))

    def validated(self, merged: Layer) -> Config:
        """The settings; what has no right value has its default, and was told."""
        try:
            return Config.model_validate(merged.values)
        except ValidationError as error:
            for key, text in of_values(error):
                self.errors.append((merged.place(key), text))
                names = key.split(".")
                while names[-1].isdigit():
                    names.pop()
                self.bad.add(".".join(names))
                remove(merged.values, names)
            return Config.model_validate(merged.values)


def _is_text(key: str) -> bool:
    """Whether a setting is text, or null, and nothing else."""
    schema = schema_of(key)
    return {part.get("type") for part in schema.get("anyOf", [schema])} in ({"string"}, {"string", "null"})


def _find(name: Path, folder: Path) -> Path | None:
    """A file by its path, with or without .yaml, or by its name among the shipped ones."""
    for base in (folder, SHIPPED):
        for path in (base / name, base / f"{name}.yaml"):
            if path.is_file():
                return Path(os.path.abspath(path))
    return None


def _similar(name: str) -> str:
    shipped = [path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.glob("*/*.yaml")]
    return nearest(name.removesuffix(".yaml").removeprefix("configs/"), shipped)
