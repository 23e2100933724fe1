"""Prompts read back from their words, and what pictures of several shapes show. Pictures are drawn here by signed
distances, with the scene that they were drawn of as the reference."""

import random

import numpy as np
import pytest
import torch
from scipy import ndimage

from sanacog.evaluation.drawn import clips, obedience, several, shapes, words
from sanacog.evaluation.drawn.words import Asked, Wanted, read


def canvas(background, things, side=128):
    """(H, W, 3) in [0, 1]: things are (colour, shape, x, y, radius) in pixels of 256, names as in the tables."""
    picture = shapes.RGB[shapes.COLOURS.index(background)][:, None, None].expand(3, side, side)
    for colour, shape, *place in things:
        x, y, radius = (value * side / 256 for value in place)
        kind, ink = torch.tensor([shapes.SHAPES.index(shape)]), shapes.RGB[shapes.COLOURS.index(colour)][:, None, None]
        distance = shapes.distances(kind, torch.tensor([[x, y]]), torch.tensor([radius]), side)
        picture = torch.lerp(picture, ink, (0.5 - distance[0]).clamp(0, 1))
    return picture.permute(1, 2, 0).numpy()


def test_every_sentence_of_the_world_is_read_back():
    rng, generator = random.Random(5), torch.Generator().manual_seed(5)
    for scene in shapes.sample_scenes(500, generator).tolist():
        text, (has_size, has_place) = shapes.any_prompt(scene, rng)
        colour, shape, background, size, place = scene
        thing = Asked(shapes.COLOURS[colour], shapes.SHAPES[shape], shapes.SIZES[size] if has_size else None)
        assert read(text) == Wanted((thing,), shapes.COLOURS[background], shapes.PLACES[place] if has_place else None), text
    for scene in clips.sample_scenes(500, generator).tolist():
        text = clips.any_prompt(scene, rng)
        colour, shape, background, direction = scene
        thing = Asked(shapes.COLOURS[colour], shapes.SHAPES[shape])
        assert read(text) == Wanted((thing,), shapes.COLOURS[background], direction=clips.DIRECTIONS[direction]), text


def test_two_shapes_and_numbers_are_read():
    assert read("A red circle to the left of a small blue box, on a white background.") == Wanted(
        (Asked("red", "circle"), Asked("blue", "square", "small")), "white", relation="left")
    assert read("three orange crosses on a black background") == Wanted((Asked("orange", "cross", None, 3),), "black")


@pytest.mark.parametrize("prompt", [
    "a cat on a sofa", "", "a red circle", "a red circle and a blue square on a white background",
    "a red circle left of a blue square left of a green ring on a white background"])
def test_what_cannot_be_judged_is_said(prompt):
    with pytest.raises(ValueError, match="no prompt that the judge of the embedded models"):
        read(prompt)


def test_prompts_of_two_and_of_numbers_can_be_read_and_are_even():
    two, counted = [list(map(read, make())) for make in (words.two_shapes, words.counting)]
    assert len(set(words.two_shapes())) == 64 and len(set(words.counting())) == 48
    for wanted in two:
        one, other = wanted.things
        assert len({one.colour, other.colour, wanted.background}) == 3 and one.shape != other.shape
    assert [sum(wanted.relation == name for wanted in two) for name in ("left", "right", "above", "below")] == [16] * 4
    assert [sum(wanted.things[0].count == n for wanted in counted) for n in (1, 2, 3)] == [16] * 3
    assert all(wanted.things[0].colour != wanted.background for wanted in counted)


def test_drawn_pictures_of_two_obey_and_others_do_not():
    generator = torch.Generator().manual_seed(3)
    places = {"left": ((70, 128), (186, 128)), "above": ((128, 70), (128, 186))}
    places |= {"right": places["left"][::-1], "below": places["above"][::-1]}
    for prompt in words.two_shapes()[::3]:
        wanted = read(prompt)
        jitter = (torch.rand(2, 3, generator=generator) * 2 - 1) * torch.tensor([9.0, 9.0, 6.0])
        drawn = [(asked.colour, asked.shape, *(torch.tensor([*place, 44.0]) + move).tolist())
                 for asked, place, move in zip(wanted.things, places[wanted.relation], jitter)]
        assert all(obedience.obeys(canvas(wanted.background, drawn)[None], wanted).values()), prompt
        swapped = [(*a[:2], *b[2:]) for a, b in zip(drawn, drawn[::-1])]
        assert obedience.obeys(canvas(wanted.background, swapped)[None], wanted) == {
            "background": True, "colours": True, "shapes": True, "relation": False}
        one = obedience.obeys(canvas(wanted.background, drawn[:1])[None], wanted)
        assert one == {"background": True, "colours": False, "shapes": False, "relation": False}
        exchanged = [(one[0], other[1], *one[2:]) for one, other in zip(drawn, drawn[::-1])]
        assert not obedience.obeys(canvas(wanted.background, exchanged)[None], wanted)["shapes"]


def test_counting():
    places = [(64, 70), (190, 80), (120, 190), (205, 200)]
    for prompt in words.counting()[::4]:
        wanted = read(prompt)
        thing = wanted.things[0]
        for number in range(1, 5):
            frames = canvas(wanted.background, [(thing.colour, thing.shape, *place, 36) for place in places[:number]])[None]
            if thing.count > 1:
                assert obedience.obeys(frames, wanted) == {"background": True, "count": number == thing.count}, prompt
    background, found = several.things(canvas("white", [("red", "circle", 64, 64, 40), ("orange", "star", 190, 190, 50)]))
    assert background == "white"
    assert {(thing.colour, thing.shape) for thing in found} == {("red", "circle"), ("orange", "star")}
    assert [round(value * 256) for value in found[0].centre] == [64, 64]
    wrong = canvas("white", [("red", "circle", 64, 64, 36), ("red", "square", 190, 190, 36)])[None]
    assert not obedience.obeys(wrong, read("two red circles on a white background"))["count"]
    two_circles = [("red", "circle", 64, 64, 36), ("red", "circle", 190, 190, 36)]
    one_more = canvas("white", [*two_circles, ("blue", "square", 64, 190, 36)])[None]
    assert not obedience.obeys(one_more, read("two red circles on a white background"))["count"]


@pytest.mark.parametrize("background, ink, shape, other", [
    ("black", "yellow", "ring", "white"), ("red", "yellow", "square", "purple"), ("white", "black", "ring", "orange")])
def test_soft_outlines_are_no_shapes(background, ink, shape, other):
    """As a small autoencoder draws them, blurred by six pixels of 256: the colours between ink and paper look like others
    of the table."""
    picture = canvas(background, [(ink, shape, 64, 64, 40), (other, "circle", 186, 186, 44)])
    told, found = several.things(ndimage.gaussian_filter(picture, (3, 3, 0)))
    assert told == background and {(thing.colour, thing.shape) for thing in found} == {(ink, shape), (other, "circle")}


def test_a_single_shape_is_judged_by_what_the_prompt_names():
    frames = canvas("blue", [("red", "circle", 82, 128, 76)])[None]
    everything = obedience.obeys(frames, read("a large red circle on the left on a blue background"))
    assert everything == dict.fromkeys(("colour", "shape", "background", "size", "place"), True)
    assert obedience.obeys(frames, read("a red square on a white background")) == {
        "colour": True, "shape": False, "background": False}


def test_the_score_counts_attributes_before_outlines():
    wanted = read("a large red circle on a blue background")
    right, blurred = (canvas("blue", [("red", "circle", 128, 128, 76)], side)[None] for side in (256, 64))
    blurred = blurred.copy()
    blurred[0, 20:44, 14:22] = shapes.RGB[2].numpy()  # a bite
    wrong = canvas("blue", [("green", "circle", 128, 128, 76)])[None]
    scores = [obedience.score(frames, wanted) for frames in (right, blurred, wrong)]
    assert scores == sorted(scores, reverse=True) and 0.95 < scores[0] <= 1 and scores[1] < scores[0] and scores[2] < 0.81


@pytest.mark.parametrize("world, draw", [("clips", clips.draw), ("roaming", None)])
def test_clips(world, draw):
    from sanacog.evaluation.drawn import roaming

    scenes = torch.tensor([[0, 0, 2, 1], [3, 1, 5, 2]])
    drawn = clips.to_frames((draw or roaming.draw)(scenes))
    for frames, scene in zip(drawn, scenes):
        wanted = read(clips.plain_prompt(scene))
        assert all(obedience.obeys(frames, wanted, world).values())
        assert not obedience.obeys(frames[::-1], wanted, world)["direction"]
    with pytest.raises(ValueError, match="one frame"):
        obedience.obeys(drawn[0][:1], wanted)
    with pytest.raises(ValueError, match="no motion"):
        obedience.obeys(drawn[0], read("a red circle on a blue background"))
