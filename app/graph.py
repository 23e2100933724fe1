"""A shipped workflow with what a person chose in it. Values are filled in and nothing is built here, so that a page and a canvas
cannot show different workflows of one name. Standard library only."""

import copy
import json
from pathlib import Path

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
# What the nodes call some of the values; the others have the same name everywhere.
INPUTS = {"guidance": ("cfg", "guidance"), "seed": ("seed", "noise_seed"), "frames": ("length",)}
SIZES = ("width", "height")
AFTER_SEED = ("fixed", "increment", "decrement", "randomize")  # the canvas keeps one of these behind a seed


def shipped(name):
    """The workflow in API form: {node id: {class_type, inputs}}."""
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text("utf-8"))


def filled(workflow, values, prompt=None, negative=None):
    """The workflow (API form) with these in every node that has such an input.

    values: {name: value}; a None is left as it is. A link stays a link, but for a size's, which gives way. Raises KeyError for a
    value that has no place.
    """
    workflow = copy.deepcopy(workflow)
    for name, value in values.items():
        if value is not None:
            _fill(workflow, name, value)
    for side, text in (("positive", prompt), ("negative", negative)):
        if text is not None:
            _say(workflow, side, text)
    return workflow


def _fill(workflow, name, value):
    places = [(node["inputs"], key) for node in workflow.values() for key in INPUTS.get(name, (name,)) if key in node["inputs"]
              and (not isinstance(node["inputs"][key], list) or name in SIZES and "Latent" in node["class_type"])]
    if not places:
        raise KeyError(f"no node of this workflow has a value {name}")
    for inputs, key in places:
        inputs[key] = value


def _say(workflow, side, text):
    users = [node["inputs"] for node in workflow.values() if side in node["inputs"]]
    if not users:
        raise KeyError(f"no node of this workflow has a {side} prompt")
    for inputs in users:
        while "text" not in inputs:  # past nodes that add a picture to the prompt
            inputs = workflow[inputs[side][0]]["inputs"]
        if isinstance(inputs["text"], list):  # one text for several encoders
            workflow[inputs["text"][0]]["inputs"]["value"] = text
        else:
            inputs["text"] = text


def with_lora(workflow, lora, strength):
    """The workflow with a LoRA between its model and what uses it: the node of the workflow sana_lora."""
    workflow = copy.deepcopy(workflow)
    loader = next(key for key, node in workflow.items() if "model_name" in node["inputs"])
    node = next(node for node in shipped("sana_lora").values() if "lora_name" in node["inputs"])
    new = str(max(map(int, workflow)) + 1)
    for other in workflow.values():
        other["inputs"] |= {name: [new, 0] for name, value in other["inputs"].items() if value == [loader, 0]}
    node["inputs"] |= {"model": [loader, 0], "lora_name": lora, "strength_model": strength}
    return workflow | {new: node}


def canvas(name, workflow):
    """The canvas' file of the workflow `name`, with the values of the filled one, for what is drawn to carry; None where the
    filled one has other nodes or links than the file."""
    if _wiring(shipped(name)) != _wiring(workflow):
        return None
    drawn = json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))
    for node in drawn["nodes"]:
        inputs = workflow.get(str(node["id"]), {"inputs": {}})["inputs"]
        values, at = node.get("widgets_values"), 0
        for widget in [place["name"] for place in node.get("inputs", ()) if "widget" in place]:
            if widget in inputs and not isinstance(inputs[widget], list):
                if widget.endswith("_name") and values[at] != inputs[widget]:
                    node["properties"].pop("models", None)  # where the shipped one's file is had
                values[at] = inputs[widget]
            at += 1 + (at + 1 < len(values) and values[at + 1] in AFTER_SEED)
    return drawn


def _wiring(workflow):
    return {(key, name): value if isinstance(value, list) else None
            for key, node in workflow.items() for name, value in node["inputs"].items()}
