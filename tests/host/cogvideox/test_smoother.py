"""The page's nodes for interpolation and upscaling, by ComfyUI's own nodes, on networks of random weights."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from sanacog.app.graph import shipped
from sanacog.headless.installation import ROOT

from .. import tiny

PAGE = ROOT / "docs" / "longer_videos.md"


def test_the_pages_nodes_make_more_and_larger_frames(server, comfyui_path):
    nodes = json.loads(re.search(r"```json\n(.*?)```", PAGE.read_text("utf-8"), re.S)[1])
    lacking = {node["class_type"] for node in nodes.values()} - server.object_info.keys()
    if lacking:
        pytest.skip(f"this ComfyUI has no {', '.join(sorted(lacking))}")
    tiny.import_host(comfyui_path)
    from comfy_extras.frame_interpolation_models.ifnet import IFNet
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(1)
    made = {"frame_interpolation": (IFNet(head_ch=4, channels=(32, 32, 32, 32, 32)), nodes["20"]),
            "upscale_models": (Compact(num_feat=8, num_conv=2, upscale=2), nodes["22"])}
    for folder, (network, node) in made.items():
        for weight in network.state_dict().values():
            weight.normal_(0.0, 0.02)
        place = server.base / "models" / folder / node["inputs"]["model_name"]
        place.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: weight.contiguous() for key, weight in network.state_dict().items()}, place)
    workflow = shipped("cogvideox_text_to_video")
    for key, node in nodes.items():
        workflow[key] = {**workflow.get(key, {}), **node}
    for node in workflow.values():
        node["inputs"] |= {"steps": 2} if "steps" in node["inputs"] else {}
    clips = server.run_prompt(workflow).clips
    assert next(clip.shape for name, clip in clips.items() if name.endswith(".mp4")) == (17, 192, 192, 3)
