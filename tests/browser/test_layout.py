"""No node of a shipped workflow lies on another, drawn either way."""

from itertools import combinations

import pytest

from .shipped import NAMES, TO_OPEN, shipped, with_embedded_models


def overlapping(places) -> list:
    """Pairs of nodes that have more than a pixel in common."""
    return [(a, b) for (a, one), (b, other) in combinations(places.items(), 2)
            if min(one[2], other[2]) - max(one[0], other[0]) > 1 and min(one[3], other[3]) - max(one[1], other[1]) > 1]


@pytest.fixture(params=[False, True], ids=["canvas", "Nodes 2.0"])
def drawn(canvas, request):
    """The canvas with its nodes drawn in one of the two ways."""
    able = canvas.use_nodes_2(request.param)
    if request.param and not able:
        pytest.skip("this frontend has no Nodes 2.0")
    yield canvas
    canvas.use_nodes_2(False)


@pytest.mark.parametrize("name", NAMES)
def test_nodes_have_room(drawn, server, name):
    if TO_OPEN.get(name, "KSampler") not in server.object_info:
        pytest.skip(f"this ComfyUI has no {TO_OPEN[name]}")
    workflow = with_embedded_models(shipped(name))
    drawn.open(workflow, name)
    places = drawn.places()
    types = {node["id"]: node["type"] for node in workflow["nodes"]}
    assert places.keys() == types.keys()
    assert [(types[a], types[b]) for a, b in overlapping(places)] == []


def test_what_overlaps_is_seen():
    assert overlapping({1: (0, 0, 10, 10), 2: (5, 9.5, 20, 20), 3: (5, 5, 8, 30)}) == [(1, 3), (2, 3)]
