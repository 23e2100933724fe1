"""Pictures of several shapes, after GenEval (Ghosh et al. 2023): two and where one is from the other, or one to three alike.

A group is a row of seven integers: how many alike, or PAIR; colour and shape of the one on the left, or above; colour and
shape of the other (of those alike: the same again); whether they stand one above the other; background. Colours and shapes
are those of `shapes`, its four main ones.
"""
from __future__ import annotations

import random
from functools import cache

import torch

from . import shapes, words

NUMBER, COLOUR, SHAPE, OTHER_COLOUR, OTHER_SHAPE, VERTICAL, BACKGROUND = range(7)
PAIR, MOST = 0, 3  # in NUMBER
COUNTS = (MOST + 1, len(shapes.COLOURS), shapes.MAIN_SHAPES, len(shapes.COLOURS), shapes.MAIN_SHAPES, 2, len(shapes.COLOURS))
PAIRS = 0.7  # share of groups

RADIUS, APART = 42.0, 58.0  # pixels, of the circle around each; how far the centres lie from the picture's, along each axis
CENTRES = {1: [(0, 0)], 2: [(-1, 0), (1, 0)], 3: [(0, -1), (-1, 0.9), (1, 0.9)]}  # of those alike, in APART
RELATIONS = (("left of", "right of"), ("above", "below"))  # said from the first, from the other; lying, standing


@cache
def examined() -> tuple[frozenset, frozenset]:
    """What the examination asks for: pairs {(colour, shape), (colour, shape)}; of those alike (colour, shape, background)."""
    def thing(asked):
        return shapes.COLOURS.index(asked.colour), shapes.SHAPES.index(asked.shape)
    pairs = [words.read(prompt) for prompt in words.two_shapes()]
    alike = [words.read(prompt) for prompt in words.counting()]
    return (frozenset(frozenset(map(thing, wanted.things)) for wanted in pairs),
            frozenset((*thing(wanted.things[0]), shapes.COLOURS.index(wanted.background)) for wanted in alike))


def is_held_out(group) -> bool:
    """True for what no training picture shows: pairs that the examination asks for, in whatever order, place and colour of the
    background; of those alike what it asks for, whatever their number; and all with a combination that `shapes` holds out."""
    number, colour, shape, other_colour, other_shape, _, background = (int(v) for v in group)
    if shapes.is_held_out(colour, shape, background) or shapes.is_held_out(other_colour, other_shape, background):
        return True
    pairs, alike = examined()
    if number == PAIR:
        return frozenset(((colour, shape), (other_colour, other_shape))) in pairs
    return (colour, shape, background) in alike


def sample(count: int, generator: torch.Generator) -> torch.Tensor:
    """(count, 7) int64 groups for training. Two are of different colours and shapes, and nothing has its background's colour."""
    rows = []
    while len(rows) < count:
        colour, other_colour, background = torch.randperm(len(shapes.COLOURS), generator=generator)[:3].tolist()
        shape, other_shape = torch.randperm(shapes.MAIN_SHAPES, generator=generator)[:2].tolist()
        vertical = int(torch.randint(2, (), generator=generator))
        row = (PAIR, colour, shape, other_colour, other_shape, vertical, background)
        if torch.rand((), generator=generator) >= PAIRS:
            row = (1 + int(torch.randint(MOST, (), generator=generator)), colour, shape, colour, shape, 0, background)
        if not is_held_out(row):
            rows.append(row)
    return torch.tensor(rows)


_FORMS = ("{things} on {paper}", "{things} in front of {paper}", "{paper} with {things}", "a picture of {things} on {paper}",
          "draw {things} on {paper}")


def any_prompt(group, rng: random.Random) -> str:
    """A sentence for a group: the examination's form half of the time, else a paraphrase with other words or a full stop. Of
    two either is named first."""
    number, colour, shape, other_colour, other_shape, vertical, background = (int(v) for v in group)
    plain = rng.random() < 0.5

    def named(colour, shape, many=False):
        word = shapes.SHAPE_WORDS[shape][0] if plain else rng.choice(shapes.SHAPE_WORDS[shape])
        return f"{shapes.COLOURS[colour]} {words.plural(word) if many else word}"

    if number == PAIR:
        things = [words.with_article(named(colour, shape)), words.with_article(named(other_colour, other_shape))]
        turned = rng.random() < 0.5
        text = f" {RELATIONS[vertical][turned]} ".join(things[::-1] if turned else things)
    else:
        text = f"{('one', 'two', 'three')[number - 1]} {named(colour, shape, number > 1)}"
    paper = words.with_article(f"{shapes.COLOURS[background]} background")
    text = (_FORMS[0] if plain else rng.choice(_FORMS)).format(things=text, paper=paper)
    return text if plain or rng.random() < 0.6 else text[0].upper() + text[1:] + "."


def draw(groups: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures (B, 3, 256, 256) in [-1, 1] of groups (B, 7). The generator moves each shape by up to shapes.JITTER pixels and
    scales it by up to 5 percent."""
    pictures = []
    for group in groups.tolist():
        number, colour, shape, other_colour, other_shape, vertical, background = group
        if number == PAIR:
            ends = [(0, -1), (0, 1)] if vertical else [(-1, 0), (1, 0)]
            things = [(colour, shape, ends[0]), (other_colour, other_shape, ends[1])]
        else:
            things = [(colour, shape, place) for place in CENTRES[number]]
        kinds, places = torch.tensor([kind for _, kind, _ in things]), torch.tensor([place for *_, place in things])
        jitter = (torch.rand(len(things), 2, generator=generator) * 2 - 1) * shapes.JITTER
        radius = RADIUS * (1 + 0.05 * (torch.rand(len(things), generator=generator) * 2 - 1))
        inside = (0.5 - shapes.distances(kinds, shapes.PICTURE / 2 + APART * places + jitter, radius)).clamp(0, 1)
        picture = shapes.RGB[background][:, None, None].expand(3, shapes.PICTURE, shapes.PICTURE)
        for (ink, *_), coverage in zip(things, inside):
            picture = torch.lerp(picture, shapes.RGB[ink][:, None, None], coverage)
        pictures.append(picture * 2 - 1)
    return torch.stack(pictures)
