"""The embedded ControlNet through the shipped API workflow: the drawn shape lies where the control picture's does."""

import json

import numpy as np
import pytest
from PIL import Image

from ...browser.shipped import WORKFLOWS


@pytest.fixture(scope="module")
def prompt(server):
    """The workflow with a square beside the middle, which the prompt does not place; returns it and the square's mask."""
    mask = np.zeros((256, 256), bool)
    mask[110:210, 30:130] = True
    picture = np.where(mask[..., None], (20, 20, 120), (255, 240, 60)).astype(np.uint8)
    Image.fromarray(picture).save(server.base / "input" / "aside.png")
    api = json.loads((WORKFLOWS / "api" / "sana_controlnet.json").read_text("utf-8"))
    nodes = {node["class_type"]: node["inputs"] for node in api.values()}
    nodes["LoadImage"]["image"] = "aside.png"
    nodes["KSampler"]["seed"] = 5
    next(node["inputs"] for node in api.values() if "text" in node["inputs"])["text"] = "a green square on a white background"
    return api, nodes, mask


def drawn(server, api):
    """Where the last picture is not white."""
    result = server.run_prompt(api)
    picture, = (frames[0] for name, frames in result.clips.items() if name.startswith("controlnet"))
    return (255 - picture.astype(int)).max(-1) > 100


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def test_the_shape_follows_the_edges(server, prompt):
    api, nodes, mask = prompt
    assert overlap(drawn(server, api), mask) > 0.7
    nodes["ControlNetApplyAdvanced"]["strength"] = 0.0
    assert overlap(drawn(server, api), mask) < 0.6
    nodes["ControlNetApplyAdvanced"]["strength"] = 1.0
    del nodes["ControlNetApplyAdvanced"]["vae"]
    assert "connect the VAE from Load DC-AE" in server.expect_error(api)
