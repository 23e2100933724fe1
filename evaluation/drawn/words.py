"""What a prompt of the drawn world asks for, read from its words: the other way round than `shapes` and `clips` write them.

Beside their sentences it reads those of two shapes and where one is from the other, and of several alike (`groups`).
"""
from __future__ import annotations

import re
from dataclasses import dataclass

from . import clips, shapes

NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
RELATIONS = {"left of": "left", "right of": "right", "above": "above", "below": "below", "under": "below"}


@dataclass(frozen=True)
class Asked:
    """One shape, or `count` of it. Names from the tables of `shapes`; size None where the prompt names none."""

    colour: str
    shape: str
    size: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Wanted:
    """What a prompt asks for; None is what it leaves open. place is that of the only shape; relation tells where the first
    of two is from the second; direction is of `clips`."""

    things: tuple[Asked, ...]
    background: str
    place: str | None = None
    relation: str | None = None
    direction: str | None = None


def _any(words):
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


def with_article(text: str) -> str:
    return ("an " if text[0] in "aeiou" else "a ") + text


def plural(word: str) -> str:
    return word + ("es" if word.endswith(("s", "x")) else "s")


_NAMES = {word: name for name, words in zip(shapes.SHAPES, shapes.SHAPE_WORDS) for word in words}
_NAMES |= {plural(word): name for word, name in _NAMES.items()}
_SIZES = {word: name for name, words in zip(shapes.SIZES, (shapes.LARGE, shapes.SMALL)) for word in words}
_PLACES = {phrase: name for name, phrases in zip(shapes.PLACES, shapes.PLACE_WORDS) for phrase in phrases}
_DIRECTIONS = {phrase: name for name, phrases in zip(clips.DIRECTIONS, clips.DIRECTION_WORDS) for phrase in phrases}
_THING = re.compile(rf"(?:\b({_any(NUMBERS)}) )?(?:\b({_any(_SIZES)}) )?\b({_any(shapes.COLOURS)}) ({_any(_NAMES)})\b")
_BACKGROUND = re.compile(rf"\b({_any(shapes.COLOURS)}) background\b")
_PLACE = re.compile(rf"\b({_any(_PLACES)})\b(?! of)")
_RELATION = re.compile(rf"\b({_any(RELATIONS)})\b")
_DIRECTION = re.compile(rf"\b(?:{_any(clips.MOVING + clips.MOVES)}) ({_any(_DIRECTIONS)})\b")


def read(prompt: str) -> Wanted:
    """What a prompt asks for. Raises ValueError where it is not of the drawn world: the judge knows nothing else."""
    text = " ".join(re.sub(r"[^a-z]+", " ", prompt.lower()).split())
    things = tuple(Asked(colour, _NAMES[shape], _SIZES.get(size), NUMBERS.get(number, 1))
                   for number, size, colour, shape in _THING.findall(text))
    background, relation, direction = (pattern.search(text) for pattern in (_BACKGROUND, _RELATION, _DIRECTION))
    if not background or not 1 <= len(things) <= 2 or (len(things) == 2) != bool(relation):
        raise ValueError(f"{prompt!r} is no prompt that the judge of the embedded models can judge by. It reads those like "
                         f"'{shapes.plain_prompt((0, 0, 2, 0, 0))}', 'a red circle left of a blue square on a white "
                         "background' and 'three red circles on a white background': colours "
                         f"{', '.join(shapes.COLOURS)}, shapes {', '.join(shapes.SHAPES)}.")
    place = _PLACE.search(text) if not direction and not relation else None
    return Wanted(things, background[1], place and _PLACES[place[1]], relation and RELATIONS[relation[1]],
                  direction and _DIRECTIONS[direction[1]])


# --- the examination in several shapes, after GenEval (Ghosh et al. 2023); training never shows what is asked for here ---


def two_shapes(count: int = 64) -> list[str]:
    """Prompts of two shapes of the four main ones, of different colours and shapes, each relation equally often."""
    colours, kinds = shapes.COLOURS, shapes.SHAPES[: shapes.MAIN_SHAPES]
    relations = ("left of", "right of", "above", "below")
    prompts = []
    for i in range(count):
        turn = i // len(kinds)
        one, other = kinds[i % len(kinds)], kinds[(i + 1 + turn % (len(kinds) - 1)) % len(kinds)]
        first, second, paper = (colours[(3 * i + turn + step) % len(colours)] for step in (0, 2 + i % 3, 5 + i % 3))
        prompts.append(f"{with_article(first)} {one} {relations[turn % 4]} {with_article(second)} {other} on "
                       f"{with_article(paper)} background")
    return prompts


def counting(count: int = 48) -> list[str]:
    """Prompts of one, two or three of a main shape, each number equally often."""
    colours, kinds = shapes.COLOURS, shapes.SHAPES[: shapes.MAIN_SHAPES]
    prompts = []
    for i in range(count):
        number, turn = ("one", "two", "three")[i % 3], i // 3
        colour, paper = colours[(3 * turn + i % 3) % len(colours)], colours[(3 * turn + i % 3 + 2 + turn % 5) % len(colours)]
        kind = kinds[turn % len(kinds)]
        prompts.append(f"{number} {colour} {plural(kind) if i % 3 else kind} on {with_article(paper)} background")
    return prompts
