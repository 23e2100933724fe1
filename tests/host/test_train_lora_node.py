"""The host's own nodes train LoRAs of our models: Train LoRA on a folder of pictures, and its file acts in both loaders."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from .test_stock_nodes import SIZE, apart, draw, node, sampler

STEPS = 12
WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"


@pytest.fixture(scope="module")
def folder(server):
    """Four pictures with captions, in ComfyUI's input folder: all of them yellow, which the model's are not."""
    place = server.base / "input" / "yellow"
    place.mkdir()
    for i in range(4):
        picture = Image.new("RGB", (SIZE, SIZE), (255, 220, 0))
        ImageDraw.Draw(picture).ellipse((60 + 10 * i, 60, 180 + 10 * i, 190), fill=(200, 0, 0))
        picture.save(place / f"{i}.png")
        (place / f"{i}.txt").write_text("a large red circle on a blue background")
    return place.name


def train(server, folder, name, **models):
    """Train LoRA on the folder; returns the file's name among the LoRAs."""
    slot = server.object_info["TrainLoraNode"]["output"].index  # 0.3.75 has a MODEL before them
    server.run_prompt({
        **models, "data": node("LoadImageTextDataSetFromFolder", folder=folder),
        "made": node("MakeTrainingDataset", images=["data", 0], vae=["vae", 0], clip=["clip", 0], texts=["data", 1]),
        "train": node("TrainLoraNode", model=["model", 0], latents=["made", 0], positive=["made", 1], batch_size=2,
                      grad_accumulation_steps=1, steps=STEPS, learning_rate=0.01, rank=4, optimizer="AdamW", loss_function="MSE",
                      seed=0, training_dtype="fp32", lora_dtype="fp32", algorithm="LoRA", gradient_checkpointing=True,
                      existing_lora="[None]"),
        "save": node("SaveLoRA", lora=["train", slot("LORA_MODEL")], prefix=f"loras/{name}",
                     steps=["train", slot("INT")])})
    [file] = (server.base / "output" / "loras").glob(f"{name}_{STEPS}_steps_*.safetensors")
    (server.base / "models" / "loras").mkdir(parents=True, exist_ok=True)
    shutil.copy(file, server.base / "models" / "loras" / f"{name}.safetensors")
    return f"{name}.safetensors"


def yellow(pictures):
    """Mean distance of the corners from the pictures' yellow."""
    return float(np.abs(pictures[:, :24, :24] - np.array([255, 220, 0]) / 255).mean())


def test_sana(server, folder):
    models = {"model": node("SanaCogLoadSanaModel", model_name="sanacog_tiny_sana.safetensors", weight_dtype="fp32"),
              "clip": node("SanaCogLoadSanaTextEncoder", text_encoder_name="sanacog_tiny_gemma2.safetensors",
                           tokenizer_name="auto"),
              "vae": node("SanaCogLoadDCAE", vae_name="sanacog_tiny_dcae.safetensors")}
    name = train(server, folder, "yellow", **models)
    tensors = load_file(server.base / "models" / "loras" / name)
    assert any(value.abs().max() > 0 for key, value in tensors.items() if "up" in key or "lora_B" in key)
    before = draw(server, model=models["model"])
    ours, stock = (draw(server, model=models["model"], sampler=sampler("lora"), lora=node(
        kind, model=["model", 0], lora_name=name, strength_model=1.0)) for kind in ("SanaCogLoadLoRA", "LoraLoaderModelOnly"))
    assert apart(ours, stock) < 0.002
    assert yellow(ours) < 0.5 * yellow(before)


def test_cogvideox(server, folder):
    """On single frames, which is what its data set nodes make of pictures."""
    from .cogvideox import http_graphs as video

    models = {"model": node("SanaCogLoadCogVideoXModel", model_name="sanacog_tiny_cogvideox.safetensors", weight_dtype="fp32",
                            conditioning="auto"),
              "clip": node("SanaCogLoadCogVideoXTextEncoder", text_encoder_name="sanacog_tiny_t5.safetensors",
                           tokenizer_name="auto"),
              "vae": node("SanaCogLoadCogVideoXVAE", vae_name="sanacog_tiny_cogvideox_vae.safetensors")}
    name = train(server, folder, "yellow_video", **models)
    drawn = {}
    for kind in (None, "SanaCogLoadLoRA", "LoraLoaderModelOnly"):
        lora = kind and node(kind, model=["model", 0], lora_name=name, strength_model=1.0)
        drawn[kind] = video.draw(server, **models, sampler=video.sampler("lora" if kind else "model", steps=8), lora=lora)
    assert apart(drawn["SanaCogLoadLoRA"], drawn["LoraLoaderModelOnly"]) < 0.002
    assert apart(drawn["SanaCogLoadLoRA"], drawn[None]) > 0.02


def test_the_shipped_workflow(server):
    """Words that the model does not know come to mean what the pictures have in common."""
    if server.object_info["TrainLoraNode"]["output"][0] != "LORA_MODEL":
        pytest.skip("this ComfyUI's Train LoRA has its outputs in another order")
    shutil.copytree(WORKFLOWS / "datasets", server.base / "input", dirs_exist_ok=True)
    workflow = json.loads((WORKFLOWS / "api" / "sana_train_lora.json").read_text("utf-8"))
    steps, = (node["inputs"]["steps"] for node in workflow.values() if node["class_type"] == "TrainLoraNode")
    sampling, = (node["inputs"] for node in workflow.values() if node["class_type"] == "KSampler")
    trained = workflow[sampling["model"][0]]["inputs"]
    saved = f"sanacog_sunny_{steps}_steps_*.safetensors"
    before = len(list((server.base / "output" / "loras").glob(saved)))  # the browser's tests share this server
    pictures = {}
    for strength in (1.0, 0.0):
        trained["strength_model"] = strength
        clips = server.run_prompt(workflow).clips
        picture, = (clip for name, clip in clips.items() if name.startswith("train_lora"))
        pictures[strength] = picture / 255.0
    assert yellow(pictures[1.0]) < 0.12 < 0.25 < yellow(pictures[0.0])
    assert len(list((server.base / "output" / "loras").glob(saved))) == before + 1
