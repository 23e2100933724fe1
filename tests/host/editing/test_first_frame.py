"""The workflow that edits a video by its first frame: what Sana made of the frame is in all of them, where the original
moved."""

import numpy as np
import torch

from sanacog.app.graph import shipped
from sanacog.headless.launcher import give_inputs
from sanacog.evaluation.drawn import clip_judge, clips, shapes
from sanacog.evaluation.drawn.judge import judge

COLOURS = "green", "red"  # the workflow's own, and another


def scene(colour):
    return torch.tensor([[shapes.COLOURS.index(colour), shapes.SHAPES.index("square"), shapes.COLOURS.index("purple"),
                          clips.DIRECTIONS.index("right")]])


def test_an_edit_of_the_first_frame_is_carried_through(server):
    give_inputs(server.base)
    source = clips.to_frames(clips.draw(scene("yellow")))[0]
    for colour in COLOURS:
        workflow = shipped("cogvideox_edit_first_frame")
        for node in workflow.values():
            if node["class_type"] == "CLIPTextEncode":
                node["inputs"]["text"] = node["inputs"]["text"].replace(COLOURS[0], colour)
        edited = next(node["inputs"]["start_image"] for node in workflow.values()
                      if node["_meta"]["title"] == "With the edited frame")
        workflow = {key: node for key, node in workflow.items() if not node["class_type"].startswith("Save")}
        decoded = max((key for key, node in workflow.items() if node["class_type"] == "VAEDecode"), key=int)
        workflow |= {name: {"class_type": "PreviewImage", "inputs": {"images": link}} for name, link in (
            ("frame", edited), ("frames", [decoded, 0]))}
        result = server.run_prompt(workflow)
        frame, frames = (np.stack([result.clips[image["filename"]][0] for image in result.outputs[name]["images"]]) / 255.0
                         for name in ("frame", "frames"))
        assert (judge(frame[0]).colour, judge(frame[0]).background) == (colour, "purple")
        seen = clip_judge.agreement([frames], scene(colour))
        assert all(one[0] for one in seen.values()), (colour, seen)
        centres = [(judge(a).centre, judge(b).centre) for a, b in zip(frames, source)]
        apart = [96 * np.hypot(a[0] - b[0], a[1] - b[1]) for a, b in centres if a is not None]
        assert len(apart) >= 6 and np.mean(apart) < 4.5, f"{colour}, {np.round(apart, 1)}: it moves in another place than the original"
