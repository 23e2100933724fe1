"""Frames between frames and larger ones by ComfyUI's own nodes: the shipped workflows, and the page's nodes for both."""

import json
import re

import numpy as np
import pytest

from sanacog.app.graph import shipped
from sanacog.headless.installation import ROOT

from .. import tiny, tiny_smoother
from ..test_stock_nodes import node

PAGE = ROOT / "docs" / "longer_videos.md"
STAND_INS = {"FrameInterpolationModelLoader": tiny_smoother.INTERPOLATION, "UpscaleModelLoader": tiny_smoother.UPSCALER}


@pytest.fixture(scope="module")
def draw(server, comfyui_path):
    """API workflow -> what it makes, with the stand-ins and in two steps. Skips where this ComfyUI lacks a node."""
    tiny.import_host(comfyui_path)
    models = server.base / "models"
    tiny_smoother.save_upscaler(models / "upscale_models")
    if "FrameInterpolate" in server.object_info:
        tiny_smoother.save_rife(models / "frame_interpolation")

    def run(workflow):
        lacking = {one["class_type"] for one in workflow.values()} - server.object_info.keys()
        if lacking:
            pytest.skip(f"this ComfyUI has no {', '.join(sorted(lacking))}")
        for one in workflow.values():
            if one["class_type"] in STAND_INS:
                one["inputs"]["model_name"] = STAND_INS[one["class_type"]]
            if "steps" in one["inputs"]:
                one["inputs"]["steps"] = 2
        return server.run_prompt(workflow)
    return run


def frames_and_result(draw, name):
    """The decoder's frames (T, H, W, 3) of a shipped workflow, and what its node 14 makes of them."""
    workflow = {key: one for key, one in shipped(name).items() if not one["class_type"].startswith("Save")}
    return (np.stack(draw({**workflow, "15": node("PreviewImage", images=[key, 0])}).images).astype(int)
            for key in ("8", "14"))


def test_frames_between(draw):
    frames, found = frames_and_result(draw, "cogvideox_interpolate")
    assert frames.shape == (9, 96, 96, 3) and found.shape == (17, 96, 96, 3)
    assert (found[::2] == frames).all() and (frames[1:] != frames[:-1]).any()
    assert abs(2 * found[1::2] - (frames[1:] + frames[:-1])).max() <= 3  # 8 bits, rounded down thrice


def test_larger(draw):
    frames, found = frames_and_result(draw, "cogvideox_upscale")
    times = tiny_smoother.TIMES
    assert (found == frames.repeat(times, axis=1).repeat(times, axis=2)).all()


@pytest.mark.parametrize("name, shape, rate", [("cogvideox_interpolate", (17, 96, 96, 3), 16),
                                               ("cogvideox_upscale", (9, 192, 192, 3), 8)])
def test_the_workflows_videos(draw, name, shape, rate):
    workflow = shipped(name)
    rates = [one["inputs"]["fps"] for one in workflow.values() if "fps" in one["inputs"]]
    assert rates == [rate] * 2
    assert {clip.shape for clip in draw(workflow).clips.values()} == {shape}


def test_the_pages_nodes_make_more_and_larger_frames(draw):
    nodes = json.loads(re.search(r"```json\n(.*?)```", PAGE.read_text("utf-8"), re.S)[1])
    workflow = shipped("cogvideox_text_to_video")
    for key, one in nodes.items():
        workflow[key] = {**workflow.get(key, {}), **one}
    clips = draw(workflow).clips
    assert next(clip.shape for name, clip in clips.items() if name.endswith(".mp4")) == (33, 256, 256, 3)
