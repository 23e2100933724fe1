"""What is published on the Hub, by the names that people say, and under which licence: configs/models/ and configs/hub.yaml."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
LAYOUTS = {"native": "native", "sat": "SAT"}  # names under `published` of the authors' own layouts -> what people call them
FAMILIES = ("sana", "sana_video", "cogvideox")  # in the order in which they are listed
TASKS = {"sana": "text-to-image", "sana_video": "text-to-video", "none": "text-to-video", "image": "image-to-video",
         "repeated_image": "image-to-video", "inpaint": "image-to-video", "control": "video-to-video", "void": "video-to-video"}


@dataclass(frozen=True)
class Licence:
    """metadata: what a card's header says of it. terms: a sentence for its text."""

    metadata: dict[str, str]
    terms: str


@dataclass(frozen=True)
class Entry:
    """A repository.

    name: what people say. licence: a key of licences(), None where it is not known here. gigabytes: of a model its transformer
    in 16 bits, computed; None where nothing is known. file: the one in it that counts; called: its name here. variant: name of
    its file in configs/models, title: what the pack calls such a file when it reads one; None of what is no model. layout: ""
    for diffusers', else a name of LAYOUTS.
    """

    name: str
    family: str
    repository: str
    about: str
    licence: str | None = None
    gigabytes: float | None = None
    file: str | None = None
    called: str | None = None
    variant: str | None = None
    title: str | None = None
    task: str = ""
    layout: str = ""
    aliases: tuple[str, ...] = field(default=(), repr=False)

    @property
    def words(self) -> set[str]:
        return _words(self.name, self.repository, *self.aliases)


@functools.cache
def _file() -> dict:
    return yaml.safe_load((CONFIGS / "hub.yaml").read_text(encoding="utf-8"))


@functools.cache
def licences() -> dict[str, Licence]:
    return {name: Licence({key: text for key, text in told.items() if key != "terms"}, told["terms"])
            for name, told in _file()["licences"].items()}


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Everything that is published: the models, smallest first in each family, then what goes with them."""
    found = [entry for path in sorted((CONFIGS / "models").glob("*.yaml")) for entry in _of_model(path)]
    found.sort(key=lambda entry: (FAMILIES.index(entry.family), entry.layout != "", entry.gigabytes, entry.variant))
    return (*found, *(Entry(**told) for told in _file()["others"]))


def embedded() -> set[str]:
    """What the pack calls its own embedded models, which are published nowhere and come under this repository's licence."""
    models = [yaml.safe_load(path.read_text(encoding="utf-8"))["model"] for path in (CONFIGS / "models").glob("*.yaml")]
    return {model["title"] for model in models if "published" not in model}


def _of_model(path: Path):
    """A model's entries, one a layout; of an embedded one none."""
    told = yaml.safe_load(path.read_text(encoding="utf-8"))
    model, sampling = told["model"], told["sampling"]
    family = model["family"]
    title = model["title"]
    special = _file()["special"].get(path.stem, {})
    for layout, repository in model.get("published", {}).items():
        size = next(size for size in _file()["sizes"][family] if size in title.split())
        licence, gigabytes = _file()["sizes"][family][size]
        licence = special.get("licence", licence)
        task = TASKS[model.get("conditioning", "none") if family == "cogvideox" else family]
        clip = f", {sampling['frames']} frames" if "frames" in sampling else ""
        about = f"{task.replace('-', ' ')}, {sampling['width']} x {sampling['height']}{clip}"
        if "teacher" in path.stem:
            about += "; teacher of Sprint's training"
        own = LAYOUTS.get(layout, "") if "diffusers" in model["published"] else ""  # what has no other is not asked for by it
        owner, name, *file = repository.split("/")
        about_layout = about + ("; the authors' own layout" if layout in LAYOUTS else "")
        yield Entry(f"{special.get('name', title)} {own}".strip(), family, f"{owner}/{name}", about_layout, licence, gigabytes, "/".join(file) or None,
                    None, path.stem, model["title"], task, own, (path.stem,))


def find(words: str) -> list[Entry]:
    """The entries that people may mean, best first: those whose every word fits, those with just that name before all others.

    The authors' own layouts only count where they are asked for.
    """
    wanted = _words(words)
    asked = {layout for layout in LAYOUTS.values() if layout.lower() in wanted}
    fitting = [entry for entry in entries() if (not entry.layout or entry.layout in asked)
               and all(any(word.startswith(want) for word in entry.words) for want in wanted)]
    named = [entry for entry in fitting if _words(entry.name) == wanted or entry.repository.lower() == words.strip().lower()]
    return named or fitting


def of_base(name: str) -> Entry | None:
    """The model that a base is, by its repository, the name of its file in configs/models, or its title. None if unknown."""
    for same in (lambda entry: name == entry.repository, lambda entry: name == entry.variant, lambda entry: name == entry.name):
        if found := [entry for entry in entries() if entry.variant and same(entry)]:
            return next((entry for entry in found if not entry.layout), found[0])
    return None


def _words(*texts: str) -> set[str]:
    """Lower-case words; 1024px is 1024."""
    parts = re.split(r"[\s/_-]+", " ".join(texts).lower())
    return {re.sub(r"(?<=\d)px$", "", part) for part in parts if part}
