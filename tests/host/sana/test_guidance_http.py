"""The shipped workflow of Sana's guidance nodes, over HTTP on the embedded models."""

import copy
import json

import numpy as np
import pytest

from sanacog.headless.installation import ROOT


@pytest.fixture(scope="module")
def workflow():
    return json.loads((ROOT / "workflows" / "api" / "sana_guidance.json").read_text("utf-8"))


def changed(workflow, **inputs):
    """kind__input=value, for the one node of the kind SanaCog<kind> or <kind>."""
    workflow = copy.deepcopy(workflow)
    for name, value in inputs.items():
        kind, _, key = name.partition("__")
        [node] = [n for n in workflow.values() if n["class_type"].removeprefix("SanaCog") == kind]
        node["inputs"][key] = value
    return workflow


def test_each_node_changes_the_picture(server, workflow):
    def draw(**inputs):
        [picture] = server.run_prompt(changed(workflow, KSampler__seed=3, KSampler__steps=6, **inputs)).images
        return picture / 255.0

    all_three = draw()
    assert all_three.shape == (256, 256, 3) and all_three.std() > 0.05
    for other in (dict(SanaPAG__scale=0.0), dict(CFGInterval__end_percent=1.0), dict(SanaNVlabsNegative__text="blurry")):
        assert np.abs(draw(**other) - all_three).mean() > 1e-3, other


def test_blocks_that_are_not_there(server, workflow):
    said = server.expect_error(changed(workflow, SanaPAG__blocks="8"))
    assert "blocks is '8'" in said and "blocks 0 to 5" in said
