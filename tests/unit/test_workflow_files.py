"""Shipped workflows name files that come with the pack, or say where to get them: in the frontend's own form, from which
it offers what is missing."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
EMBEDDED = {path.name for path in (ROOT / "models").glob("*/*.safetensors")}
DIRECTORIES = {
    "SanaCogLoadSanaModel": "diffusion_models", "SanaCogLoadSanaVideoModel": "diffusion_models",
    "SanaCogLoadCogVideoXModel": "diffusion_models",
    "SanaCogLoadSanaTextEncoder": "text_encoders", "SanaCogLoadCogVideoXTextEncoder": "text_encoders",
    "SanaCogLoadDCAE": "vae", "SanaCogLoadCogVideoXVAE": "vae",
    "SanaCogLoadSanaControlNet": "controlnet", "SanaCogLoadCogVideoXControlNet": "controlnet",
    "SanaCogLoadLoRA": "loras",
    "FrameInterpolationModelLoader": "frame_interpolation", "UpscaleModelLoader": "upscale_models",
}


def loaders(workflow):
    return [node for node in workflow["nodes"] if node["type"].startswith("SanaCogLoad") or node["type"] in DIRECTORIES]


def notes(workflow):
    return "\n".join(node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_file_is_embedded_or_can_be_had(path):
    workflow = json.loads(path.read_text("utf-8"))
    assert loaders(workflow)
    for node in loaders(workflow):
        name, models = node["widgets_values"][0], node["properties"].get("models", [])
        directory = DIRECTORIES[node["type"]]
        if name in EMBEDDED:
            assert not models
        elif not name.endswith(".safetensors"):  # a folder, which the frontend cannot offer: the note tells
            folder = name.partition("/")[0]
            assert re.search(rf"hf download \S+/{re.escape(folder)} .*--local-dir models/{directory}/{re.escape(folder)}\b",
                             notes(workflow)), name
            assert not models
        else:
            model, = models
            assert model.keys() == {"name", "url", "directory"}
            assert (model["name"], model["directory"]) == (name, directory)
            assert re.fullmatch(r"https://huggingface\.co/[\w.-]+/[\w.-]+/resolve/main/[\w./-]+\.safetensors", model["url"])


def test_a_file_is_had_from_one_place():
    places = {}
    for path in WORKFLOWS:
        for node in loaders(json.loads(path.read_text("utf-8"))):
            for model in node["properties"].get("models", []):
                places.setdefault(model["name"], set()).add((model["url"], model["directory"]))
    assert places and all(len(found) == 1 for found in places.values()), places
