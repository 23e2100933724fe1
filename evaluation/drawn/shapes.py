"""The drawn world of the tiny Sana: its grammar, its held-out combinations and its pictures.

A scene is a row of five integers (colour, shape, background, size, place), each an index into the tables
below. A picture is one flat, anti-aliased shape on a flat background. Layouts are few on purpose (two sizes, five places,
a few pixels of jitter), so that a model trained for an hour on a CPU can learn them.
"""
from __future__ import annotations

import math
import random

import torch

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
SHAPES = ("circle", "square", "triangle", "ring", "cross", "star")
MAIN_SHAPES = 4  # the first four are the grammar proper, cross and star are extras
SIZES = ("large", "small")
PLACES = ("left", "right", "top", "bottom", "centre")
COLOUR, SHAPE, BACKGROUND, SIZE, PLACE = range(5)
ATTRIBUTES = ("colour", "shape", "background", "size", "place")
COUNTS = (len(COLOURS), len(SHAPES), len(COLOURS), len(SIZES), len(PLACES))

PICTURE = 256  # pixels a side
RADII = (76.0, 38.0)  # pixels, of the circle around the shape, for large and small
JITTER = 5.0  # pixels, at most, along each axis
OFFSET = 46.0  # pixels, from the centre of the picture to the other four places
CENTRES = ((-OFFSET, 0.0), (OFFSET, 0.0), (0.0, -OFFSET), (0.0, OFFSET), (0.0, 0.0))
RGB = torch.tensor([  # [0, 1]
    [0.87, 0.12, 0.12], [0.12, 0.65, 0.20], [0.12, 0.25, 0.87], [0.97, 0.86, 0.10],
    [0.97, 0.50, 0.06], [0.55, 0.13, 0.70], [0.97, 0.97, 0.97], [0.04, 0.04, 0.04]])

# --- which scenes are for training, which are held out ---


def is_held_out(colour: int, shape: int, background: int) -> bool:
    """True for every fifth (colour, shape, background): the model never sees the triple, but every pair in it."""
    return (colour + 3 * background + 2 * shape) % 5 == 0


def combinations(held_out: bool, shapes: int = len(SHAPES)) -> list[tuple[int, int, int]]:
    """All (colour, shape, background) of one side of the split; a shape never has its background's colour."""
    return [(c, s, b) for s in range(shapes) for b in range(len(COLOURS)) for c in range(len(COLOURS))
            if c != b and is_held_out(c, s, b) == held_out]


def sample_scenes(count: int, generator: torch.Generator, held_out: bool = False) -> torch.Tensor:
    """(count, 5) int64 scenes. The extra shapes come half as often as the main ones, small shapes less often than large."""
    table = torch.tensor(combinations(held_out))
    weights = torch.where(table[:, 1] < MAIN_SHAPES, 1.0, 0.5)
    chosen = table[torch.multinomial(weights, count, replacement=True, generator=generator)]
    size = (torch.rand(count, generator=generator) < 0.35).long()
    place = torch.randint(len(PLACES), (count,), generator=generator)
    return torch.cat([chosen, size[:, None], place[:, None]], dim=1)


# --- words ---

LARGE, SMALL = ("large", "big", "huge"), ("small", "little", "tiny")
PLACE_WORDS = (
    ("on the left", "at the left", "to the left"), ("on the right", "at the right", "to the right"),
    ("at the top", "on top", "near the top"), ("at the bottom", "at the very bottom", "near the bottom"),
    ("in the centre", "in the center", "in the middle"))
SHAPE_WORDS = (("circle", "disc"), ("square", "box"), ("triangle",), ("ring", "hoop"), ("cross", "plus"), ("star",))
_FORMS = (
    "a {size} {colour} {shape} {place} on a {background} background",
    "a {size} {colour} {shape} on a {background} background {place}",
    "a {background} background with a {size} {colour} {shape} {place}",
    "a picture of a {size} {colour} {shape} {place} on a {background} background",
    "{size} {colour} {shape} {place}, {background} background",
    "draw a {size} {colour} {shape} {place} in front of a {background} background")


def plain_prompt(scene, with_place: bool = True) -> str:
    """The grammar's own sentence for a scene: 'a large red circle [on the left] on a blue background'."""
    colour, shape, background, size, place = (int(v) for v in scene)
    where = PLACE_WORDS[place][0] + " " if with_place else ""
    return f"a {SIZES[size]} {COLOURS[colour]} {SHAPES[shape]} {where}on a {COLOURS[background]} background"


def any_prompt(scene, rng: random.Random) -> tuple[str, tuple[bool, bool]]:
    """A sentence for a scene and (it names the size, it names the place): the grammar's own half of the time,
    else a paraphrase with other words, capitals, a full stop, or without the size."""
    colour, shape, background, size, place = (int(v) for v in scene)
    with_place = rng.random() < 0.6
    if rng.random() < 0.5:
        return plain_prompt(scene, with_place), (True, with_place)
    with_size = rng.random() < 0.9
    text = rng.choice(_FORMS).format(
        size=rng.choice(SMALL if size else LARGE) if with_size else "",
        colour=COLOURS[colour], background=COLOURS[background], shape=rng.choice(SHAPE_WORDS[shape]),
        place=rng.choice(PLACE_WORDS[place]) if with_place else "")
    text = " ".join(text.split()).replace(" ,", ",").replace("a orange", "an orange")
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.3:
        text += "."
    return text, (with_size, with_place)


def evaluation_scenes() -> tuple[torch.Tensor, list[str], list[bool]]:
    """The 64 fixed test cases: (64, 5) scenes, large, the four main shapes, held-out combinations; their prompts in the
    grammar's own words, no two alike; and whether each prompt names its place, which half of them do."""
    table = combinations(held_out=True, shapes=MAIN_SHAPES)
    random.Random(64).shuffle(table)
    by_shape = [[row for row in table if row[1] == s] for s in range(MAIN_SHAPES)]
    scenes, named = [], []
    for i in range(64):
        rows = by_shape[i % MAIN_SHAPES]
        lap, index = divmod(i // MAIN_SHAPES, len(rows))
        scenes.append((*rows[index], 0, (i // 2) % len(PLACES)))
        named.append((index + lap) % 2 == 1)
    prompts = [plain_prompt(scene, with_place=place) for scene, place in zip(scenes, named)]
    return torch.tensor(scenes), prompts, named


def wider_scenes(count: int = 96) -> tuple[torch.Tensor, list[str], list[bool]]:
    """As evaluation_scenes, of all six shapes and both sizes: (count, 5) scenes of held-out combinations, in the proportions of
    the training."""
    scenes = sample_scenes(count, torch.Generator().manual_seed(96), held_out=True)
    named = [i % 2 == 1 for i in range(count)]
    return scenes, [plain_prompt(scene, with_place=place) for scene, place in zip(scenes.tolist(), named)], named


# --- pictures ---


def signed_distance(shape: int, x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Distance in pixels to the outline of a shape centred at 0, negative inside. x to the right, y downwards."""
    if shape == 0:
        return torch.sqrt(x * x + y * y) - radius
    if shape == 1:
        return torch.maximum(x.abs(), y.abs()) - 0.86 * radius
    if shape == 2:  # upright, equilateral; its centre of mass a quarter of the radius below the circle's centre
        y = y - 0.2 * radius
        side = math.sqrt(0.75) * x.abs() - 0.5 * y
        return torch.maximum(side, y) - 0.55 * radius
    if shape == 3:
        return (torch.sqrt(x * x + y * y) - 0.74 * radius).abs() - 0.26 * radius
    if shape == 4:
        x, y = x.abs(), y.abs()
        return torch.maximum(torch.maximum(x, y) - radius, torch.minimum(x, y) - 0.3 * radius)
    # Five points: fold the plane into one half of a point, then the distance to the line from its tip to its foot.
    rho, angle = torch.sqrt(x * x + y * y), torch.atan2(x, -y)
    tenth = math.pi / 5
    angle = (torch.remainder(angle + tenth, 2 * tenth) - tenth).abs()
    foot_x, foot_y = 0.45 * math.cos(tenth), 0.45 * math.sin(tenth)
    length = math.hypot(foot_x - 1.0, foot_y)
    normal_x, normal_y = foot_y / length, (1.0 - foot_x) / length
    return rho * torch.cos(angle) * normal_x + rho * torch.sin(angle) * normal_y - radius * normal_x


def draw(scenes: torch.Tensor, generator: torch.Generator | None = None, colour_jitter: float = 0.0,
         crop: int | None = None) -> torch.Tensor:
    """Pictures (B, 3, 256, 256) in [-1, 1] of scenes (B, 5).

    The generator moves each shape by up to JITTER pixels, scales it by up to 5 percent and, where colour_jitter is above
    0, adds normal noise of that standard deviation to both colours; without one, nothing moves. crop: a side in pixels;
    with a generator, only a random square of it around the shape's outline is drawn, (B, 3, crop, crop).
    """
    count = scenes.shape[0]
    centre = torch.tensor(CENTRES)[scenes[:, PLACE]] + PICTURE / 2
    radius = torch.tensor(RADII)[scenes[:, SIZE]]
    ink, paper = RGB[scenes[:, COLOUR]], RGB[scenes[:, BACKGROUND]]
    if generator is not None:
        centre = centre + (torch.rand(count, 2, generator=generator) * 2 - 1) * JITTER
        radius = radius * (1 + 0.05 * (torch.rand(count, generator=generator) * 2 - 1))
        if colour_jitter > 0:
            ink, paper = (c + colour_jitter * torch.randn(count, 3, generator=generator) for c in (ink, paper))
            ink, paper = ink.clamp(0, 1), paper.clamp(0, 1)
    side = PICTURE
    if crop is not None:
        side = crop
        reach = (torch.rand(count, 2, generator=generator) * 2 - 1) * (radius[:, None] + crop / 4)
        corner = (centre + reach - crop / 2).round().clamp(0, PICTURE - crop)
        centre = centre - corner
    coverage = (0.5 - distances(scenes[:, SHAPE], centre, radius, side)).clamp(0, 1)
    ink, paper = ink[:, :, None, None] * 2 - 1, paper[:, :, None, None] * 2 - 1
    return torch.lerp(paper, ink, coverage)


def distances(kinds: torch.Tensor, centre: torch.Tensor, radius: torch.Tensor, side: int = PICTURE) -> torch.Tensor:
    """Signed distance of each pixel to the outline of shapes (B,) with centres (B, 2), x and y, and radii (B,), all in
    pixels -> (B, 1, side, side)."""
    line = torch.arange(side) + 0.5
    found = torch.empty(len(kinds), 1, side, side)
    for kind in kinds.unique().tolist():
        rows = (kinds == kind).nonzero()[:, 0]
        x = line[None, None, :] - centre[rows, 0, None, None]
        y = line[None, :, None] - centre[rows, 1, None, None]
        found[rows, 0] = signed_distance(kind, *torch.broadcast_tensors(x, y), radius[rows, None, None])
    return found
