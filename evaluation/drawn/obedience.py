"""Whether a picture or a clip shows what its prompt asks for, attribute by attribute."""
from __future__ import annotations

import numpy as np

from . import clip_judge, roaming, shapes
from .clips import DIRECTIONS
from .judge import judge
from .several import things
from .words import Wanted

WORLDS = ("pictures", "clips", "roaming")  # in the last, what leaves a clip on one side comes in on the other


def obeys(frames: np.ndarray, wanted: Wanted, world: str = "pictures") -> dict[str, bool]:
    """What of a prompt a picture or clip shows. frames: (T, H, W, 3) in [0, 1], one for a picture, of at least 64 pixels a
    side.

    -> {attribute: whether it is right}, those that the prompt names: background; colour, shape, size and place of a single
    shape; colours, shapes and relation of two; count of several; direction in a clip. In "roaming" shapes are not judged,
    as a shape on the picture's edge has none. Raises ValueError for a prompt and frames that do not go together.
    """
    if wanted.direction and len(frames) < 2:
        raise ValueError("the prompt asks for a motion, and there is one frame: give clips, not pictures")
    if len(frames) > 1 and not wanted.direction:
        raise ValueError("the prompt asks for no motion, and clips are judged by theirs: give the prompt a direction")
    if wanted.direction:
        return _clip(frames, wanted, world)
    thing = wanted.things[0]
    if wanted.relation:
        return _two(frames[0], wanted)
    if thing.count > 1:
        background, found = things(frames[0])
        right = [one for one in found if (one.colour, one.shape) == (thing.colour, thing.shape)]
        return {"background": background == wanted.background, "count": len(right) == len(found) == thing.count}
    verdict = judge(frames[0])
    asked = {"colour": thing.colour, "shape": thing.shape, "background": wanted.background, "size": thing.size,
             "place": wanted.place}
    return {name: getattr(verdict, name) == value for name, value in asked.items() if value is not None}


def _clip(frames, wanted, world):
    thing = wanted.things[0]
    if world == "roaming":
        scene = [shapes.COLOURS.index(thing.colour), shapes.SHAPES.index(thing.shape),
                 shapes.COLOURS.index(wanted.background), DIRECTIONS.index(wanted.direction)]
        return {name: bool(seen[0]) for name, seen in roaming.agreement([frames], [scene]).items()}
    verdict = clip_judge.judge_clip(frames)
    asked = {"colour": thing.colour, "shape": thing.shape, "background": wanted.background, "direction": wanted.direction}
    return {name: getattr(verdict, name) == value for name, value in asked.items()}


def _two(picture, wanted):
    background, found = things(picture)
    first, second = (next((one for one in found if one.colour == asked.colour), None) for asked in wanted.things)
    both = first is not None and second is not None
    named = both and len(found) == 2 and all(one.shape == asked.shape for one, asked in zip((first, second), wanted.things))
    return {"background": background == wanted.background, "colours": both, "shapes": named,
            "relation": both and _relation(first.centre, second.centre) == wanted.relation}


def _relation(first, second):
    """Where the first is from the second, along the axis on which they are further apart."""
    x, y = first[0] - second[0], first[1] - second[1]
    if abs(x) > abs(y):
        return "left" if x < 0 else "right"
    return "above" if y < 0 else "below"


def score(frames: np.ndarray, wanted: Wanted, world: str = "pictures") -> float:
    """How well a picture or clip obeys, in [0, 1], for choosing among several: the share of attributes that are right; of
    equal ones, the one whose shape lies better under its canonical mask, on average over the frames. In "roaming" none does."""
    right = list(obeys(frames, wanted, world).values())
    single = world != "roaming" and not wanted.relation and wanted.things[0].count == 1
    overlap = float(np.mean([judge(frame).overlap for frame in frames])) if single else 0.0
    return (sum(right) + overlap) / (len(right) + 1)
