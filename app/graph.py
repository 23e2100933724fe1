"""A shipped workflow (workflows/api) with what a person chose in it. Nothing is built here: a page and a canvas that show different
workflows of one name cannot be."""

from __future__ import annotations

import copy
import json
from pathlib import Path

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows" / "api"
SAMPLERS = ("KSampler", "SanaCogSanaSprintSampler")
TEXTS = ("SanaCogSanaTextEncode", "CLIPTextEncode")


def shipped(name: str) -> dict:
    return json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))


def filled(workflow: dict, values: dict, prompt: str, negative: str = "") -> dict:
    """The workflow with values in it. values: {(class, input): value}, each for every node of the class that has the input as a
    value of its own. Raises KeyError for one that no node has."""
    workflow = copy.deepcopy(workflow)
    for (kind, name), value in values.items():
        places = [node["inputs"] for node in workflow.values()
                  if node["class_type"] == kind and name in node["inputs"] and not isinstance(node["inputs"][name], list)]
        if not places:
            raise KeyError(f"no {kind} of this workflow has the input {name}")
        for inputs in places:
            inputs[name] = value
    for side, text in (("positive", prompt), ("negative", negative)):
        if encoder := encoder_of(workflow, side):
            encoder["inputs"]["text"] = text
    return workflow


def encoder_of(workflow: dict, side: str) -> dict | None:
    """The node whose text the sampler's `positive` or `negative` comes from, past nodes that add a picture."""
    node = next(node for node in workflow.values() if node["class_type"] in SAMPLERS)
    while node["class_type"] not in TEXTS:
        if side not in node["inputs"]:
            return None
        node = workflow[node["inputs"][side][0]]
    return node


def with_lora(workflow: dict, lora: str, strength: float) -> dict:
    """The workflow with a LoRA between its model and what uses it: the node of the workflow sana_lora."""
    workflow = copy.deepcopy(workflow)
    node = next(copy.deepcopy(node) for node in shipped("sana_lora").values() if node["class_type"] == "SanaCogLoadLoRA")
    loader = next(key for key, found in workflow.items() if "model_name" in found["inputs"])
    new = str(max(map(int, workflow)) + 1)
    for found in workflow.values():
        for name, value in found["inputs"].items():
            if value == [loader, 0]:
                found["inputs"][name] = [new, 0]
    node["inputs"] |= {"model": [loader, 0], "lora_name": lora, "strength_model": strength}
    return workflow | {new: node}
