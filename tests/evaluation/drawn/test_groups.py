"""Drawn pictures of several shapes. The judge and the reader of prompts, which know nothing of how they are made, are the reference."""

import random

import torch

from sanacog.evaluation.drawn import groups, shapes, words
from sanacog.evaluation.drawn.obedience import obeys


def some(count, seed=0):
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    chosen = groups.sample(count, generator)
    return chosen, [groups.any_prompt(group, rng) for group in chosen.tolist()], groups.draw(chosen, generator)


def test_pictures_show_what_their_sentences_say():
    _, prompts, pictures = some(60)
    wanted = [words.read(prompt) for prompt in prompts]
    assert {"left", "right", "above", "below"} <= {one.relation for one in wanted}
    assert {1, 2, 3} <= {one.things[0].count for one in wanted if not one.relation}
    for prompt, one, picture in zip(prompts, wanted, pictures):
        seen = obeys((picture * 0.5 + 0.5).permute(1, 2, 0)[None].numpy(), one)
        assert all(seen.values()), (prompt, seen)


def test_either_of_two_is_named_first():
    group, rng = (groups.PAIR, 0, 0, 2, 1, 1, 6), random.Random(0)
    said = {groups.any_prompt(group, rng) for _ in range(40)}
    assert {"a red circle above a blue square on a white background", "a blue square below a red circle on a white background"} <= said


def test_what_the_examination_asks_for_is_never_drawn():
    pairs, alike = groups.examined()
    assert len(pairs) == 60 and len(alike) == 48  # a few of the 64 prompts are of the same two things
    chosen, prompts, _ = some(400, seed=3)
    asked = {*words.two_shapes(), *words.counting()}
    for group, prompt in zip(chosen.tolist(), prompts):
        assert not groups.is_held_out(group) and prompt not in asked
    for prompt in words.two_shapes()[:8]:
        one, other = ((shapes.COLOURS.index(x.colour), shapes.SHAPES.index(x.shape)) for x in words.read(prompt).things)
        for paper in range(len(shapes.COLOURS)):
            assert groups.is_held_out((groups.PAIR, *one, *other, 0, paper)) and groups.is_held_out((groups.PAIR, *other, *one, 1, paper))


def test_what_is_held_out_of_a_single_shape_is_held_out_of_several():
    for number, colour, shape, other_colour, other_shape, _, background in some(400, seed=4)[0].tolist():
        assert not shapes.is_held_out(colour, shape, background)
        assert number != groups.PAIR or not shapes.is_held_out(other_colour, other_shape, background)


def test_two_differ_from_each_other_and_from_their_background():
    for number, colour, shape, other_colour, other_shape, _, background in some(300, seed=9)[0].tolist():
        assert background not in (colour, other_colour)
        assert (colour != other_colour and shape != other_shape) if number == groups.PAIR else (colour, shape) == (other_colour, other_shape)
