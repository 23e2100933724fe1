"""The drawn world of the tiny CogVideoX: its grammar, its held-out combinations and its clips.

A scene is a row of four integers (colour, shape, background, direction), each an index into the tables here and in
`shapes`. A clip is one flat, anti-aliased shape that moves in a straight line at constant speed, wholly inside the
picture, on a flat background. Colours, shapes, outlines and the split into training and held-out combinations of
(colour, shape, background) are those of the tiny Sana, so that its pictures can be set in motion.
"""
from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from . import shapes
from .shapes import COLOURS, MAIN_SHAPES, RGB

SHAPES = shapes.SHAPES[:MAIN_SHAPES]
DIRECTIONS = ("left", "right", "up", "down")
COLOUR, SHAPE, BACKGROUND, DIRECTION = range(4)
ATTRIBUTES = ("colour", "shape", "background", "direction")
COUNTS = (len(COLOURS), len(SHAPES), len(COLOURS), len(DIRECTIONS))


@dataclass(frozen=True)
class Format:
    """Frames a clip, pixels a side, frames a second."""

    frames: int
    side: int
    rate: int


# Both last a second and show the same: the large one has more pixels and more frames of it.
SMALL, LARGE = Format(9, 96, 8), Format(17, 128, 16)
FRAMES, PICTURE, RATE = SMALL.frames, SMALL.side, SMALL.rate  # and what lengths are given in: pixels of the small one
STEP = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])  # (x to the right, y downwards)
TRAVEL = (31.0, 37.0)  # pixels, from the first frame to the last


@dataclass(frozen=True)
class Layout:
    """Where the shapes are: `radius` of the circle around them in pixels, least and most; `room`, the share of the
    places where the whole path fits into the picture that is made use of, 0 (always through the middle) to 1."""

    radius: tuple[float, float]
    room: float


NARROW = Layout((20.0, 24.0), 0.25)  # for making clips from text: little is left to chance, so little has to be learnt
WIDE = Layout((16.0, 28.0), 1.0)     # for what must cope with given pictures: autoencoder, image to video


def sample_scenes(count: int, generator: torch.Generator, held_out: bool = False) -> torch.Tensor:
    """(count, 4) int64 scenes of one side of the split."""
    table = torch.tensor(shapes.combinations(held_out, MAIN_SHAPES))
    chosen = table[torch.randint(len(table), (count,), generator=generator)]
    return torch.cat([chosen, torch.randint(len(DIRECTIONS), (count, 1), generator=generator)], dim=1)


def evaluation_scenes() -> tuple[torch.Tensor, list[str]]:
    """The 48 fixed test cases: (48, 4) scenes of held-out combinations, each shape and direction equally often, and
    their prompts in the grammar's own words, no two alike."""
    table = shapes.combinations(held_out=True, shapes=MAIN_SHAPES)
    random.Random(48).shuffle(table)
    by_shape = [[row for row in table if row[1] == s] for s in range(MAIN_SHAPES)]
    scenes = []
    for i in range(48):
        rows, turn = by_shape[i % MAIN_SHAPES], i // MAIN_SHAPES
        scenes.append((*rows[turn % len(rows)], turn % len(DIRECTIONS)))
    return torch.tensor(scenes), [plain_prompt(scene) for scene in scenes]


# --- words ---

SHAPE_WORDS = (("circle", "disc"), ("square", "box"), ("triangle",), ("ring", "hoop"))
DIRECTION_WORDS = (("left", "to the left"), ("right", "to the right"), ("up", "upwards"), ("down", "downwards"))
MOVING, MOVES = ("moving", "going", "sliding"), ("moves", "goes", "slides")
_FORMS = (
    "a {colour} {shape} {moving} {direction} on a {background} background",
    "a {colour} {shape} on a {background} background, {moving} {direction}",
    "a {colour} {shape} {moves} {direction} on a {background} background",
    "on a {background} background a {colour} {shape} {moves} {direction}",
    "a clip of a {colour} {shape} {moving} {direction} in front of a {background} background",
    "{colour} {shape} {moving} {direction}, {background} background",
    "a {background} background with a {colour} {shape} {moving} {direction}")


def plain_prompt(scene) -> str:
    """The grammar's own sentence for a scene: 'a red circle moving left on a blue background'."""
    colour, shape, background, direction = (int(v) for v in scene)
    return f"a {COLOURS[colour]} {SHAPES[shape]} moving {DIRECTIONS[direction]} on a {COLOURS[background]} background"


def any_prompt(scene, rng: random.Random) -> str:
    """A sentence for a scene: the grammar's own half of the time, else a paraphrase with other words, capitals or a
    full stop. Each names all four attributes."""
    if rng.random() < 0.5:
        return plain_prompt(scene)
    colour, shape, background, direction = (int(v) for v in scene)
    text = rng.choice(_FORMS).format(
        colour=COLOURS[colour], background=COLOURS[background], shape=rng.choice(SHAPE_WORDS[shape]),
        direction=rng.choice(DIRECTION_WORDS[direction]), moving=rng.choice(MOVING), moves=rng.choice(MOVES))
    text = text.replace("a orange", "an orange")
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.3 else text


# --- clips ---


def draw(scenes: torch.Tensor, generator: torch.Generator | None = None, layout: Layout = NARROW,
         colour_jitter: float = 0.0, frames: int | None = None, form: Format = SMALL) -> torch.Tensor:
    """Clips (B, 3, frames, side, side) of the format, in [-1, 1], of scenes (B, 4).

    The generator picks radius, length and place of each path within the layout and, where colour_jitter is above 0,
    adds normal noise of that standard deviation to both colours; without one, every shape has the middle size and
    goes through the middle. frames: draw only that many, at times chosen at random of the format's.
    """
    count = len(scenes)

    def uniform(low, high, *shape):
        share = torch.full(shape, 0.5) if generator is None else torch.rand(*shape, generator=generator)
        return low + (high - low) * share

    radius = uniform(*layout.radius, count)
    travel = uniform(*TRAVEL, count).minimum(PICTURE - 2 * radius - 2)
    along = STEP[scenes[:, DIRECTION]]
    # How far the middle of the path may lie from the middle of the picture, along the motion and across it.
    free = PICTURE / 2 - radius - 1
    reach = torch.where(along != 0, (free - travel / 2)[:, None], free[:, None]) * layout.room
    middle = PICTURE / 2 + uniform(-1.0, 1.0, count, 2) * reach
    time = torch.linspace(-0.5, 0.5, form.frames).expand(count, -1)
    if frames is not None:
        time = time.gather(1, torch.rand(count, form.frames, generator=generator).argsort(1)[:, :frames].sort(1).values)
    centre = middle[:, None] + (along * travel[:, None])[:, None] * time[..., None]  # (B, T, 2)

    ink, paper = RGB[scenes[:, COLOUR]], RGB[scenes[:, BACKGROUND]]
    if colour_jitter > 0:
        ink, paper = ((c + colour_jitter * torch.randn(count, 3, generator=generator)).clamp(0, 1) for c in (ink, paper))
    scale = form.side / PICTURE
    line = (torch.arange(form.side) + 0.5) / scale
    coverage = torch.empty(count, 1, centre.shape[1], form.side, form.side)
    for shape in scenes[:, SHAPE].unique().tolist():
        rows = (scenes[:, SHAPE] == shape).nonzero()[:, 0]
        x = line[None, None, None, :] - centre[rows, :, 0, None, None]
        y = line[None, None, :, None] - centre[rows, :, 1, None, None]
        distance = shapes.signed_distance(shape, *torch.broadcast_tensors(x, y), radius[rows, None, None, None])
        coverage[rows, 0] = (0.5 - distance * scale).clamp(0, 1)
    ink, paper = ink[:, :, None, None, None] * 2 - 1, paper[:, :, None, None, None] * 2 - 1
    return torch.lerp(paper, ink, coverage)


def to_frames(clips: torch.Tensor):
    """(N, 3, T, H, W) in [-1, 1] -> numpy (N, T, H, W, 3) in [0, 1]."""
    return (clips.clamp(-1, 1) * 0.5 + 0.5).permute(0, 2, 3, 4, 1).float().cpu().numpy()
