"""The embedded tiny CogVideoX through the shipped workflows: as obedient as models/README.md says it is."""

import numpy as np
import pytest
import torch
from PIL import Image

from sanacog.app.graph import filled, shipped
from sanacog.evaluation.drawn import clip_judge, clips

from ..figures import at_least, measured

COUNT = 8


def made(server, name, prompt, seed, **inputs):
    """Frames (F, H, W, 3) in [0, 1] of a shipped workflow. inputs: "class.input" -> value."""
    workflow = filled(shipped(name), {"seed": seed}, prompt)
    for node in workflow.values():
        for key in node["inputs"]:
            node["inputs"][key] = inputs.get(f"{node['class_type']}.{key}", node["inputs"][key])
    result = server.run_prompt(workflow)
    return next(clip for name, clip in result.clips.items() if name.endswith(".webp")) / 255.0


def obeyed(frames, scenes):
    """{attribute: how many clips show it}"""
    seen = clip_judge.agreement(frames, scenes)
    both = seen["colour"] & seen["background"]
    return {"colour+background": int(both.sum()), "direction": int(seen["direction"].sum()), "shape": int(seen["shape"].sum())}


def check(found, kind, name, form):
    guidance = next(node["inputs"]["cfg"] for node in shipped(name).values() if node["class_type"] == "KSampler")
    size = "" if form == clips.SMALL else f" {form.frames} frames of {form.side}x{form.side},"
    shares = measured(f"{kind},{size} CFG {guidance:g}")
    for name, count in found.items():
        assert count >= at_least(shares[name], COUNT), f"{name}: {count} of {COUNT}, measured {shares[name]}"


@pytest.fixture(scope="module")
def cases():
    """COUNT of the held-out prompts, from all over the list: (scenes, prompts)"""
    scenes, prompts = clips.evaluation_scenes()
    chosen = range(0, len(prompts), len(prompts) // COUNT)
    return scenes[list(chosen)], [prompts[i] for i in chosen]


def sized(node, form):
    return {f"{node}.{name}": value for name, value in (("width", form.side), ("height", form.side), ("length", form.frames))}


@pytest.mark.parametrize("form", [clips.SMALL, clips.LARGE], ids=["small", "large"])
def test_text_to_video(server, cases, form):
    scenes, prompts = cases
    size = sized("SanaCogEmptyCogVideoXLatent", form)
    frames = [made(server, "cogvideox_text_to_video", prompt, i, **size) for i, prompt in enumerate(prompts)]
    assert frames[0].shape == (form.frames, form.side, form.side, 3)
    check(obeyed(frames, scenes), "text to video", "cogvideox_text_to_video", form)


@pytest.mark.parametrize("form", [clips.SMALL, clips.LARGE], ids=["small", "large"])
def test_image_to_video(server, cases, form):
    scenes, prompts = cases
    drawn = clips.to_frames(clips.draw(scenes, torch.Generator().manual_seed(48), clips.WIDE, form=form))
    size = sized("SanaCogCogVideoXImageToVideo", form)
    frames = []
    for i, prompt in enumerate(prompts):
        Image.fromarray((drawn[i][0] * 255).round().astype(np.uint8)).save(server.base / "input" / f"start_{i}.png")
        frames.append(made(server, "cogvideox_image_to_video", prompt, i, **{"LoadImage.image": f"start_{i}.png"}, **size))
    check(obeyed(frames, scenes), "image to video", "cogvideox_image_to_video", form)
    errors = [float(((clip[0] - start[0]) ** 2).mean()) for clip, start in zip(frames, drawn)]
    others = [float(((clip[0] - drawn[i - 1][0]) ** 2).mean()) for i, clip in enumerate(frames)]
    assert np.median(errors) < 0.2 * np.median(others), "the first frame is not the given picture"
