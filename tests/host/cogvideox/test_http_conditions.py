"""Start pictures, Fun, ControlNets and Tora with CogVideoX, over HTTP on random tiny models."""

import json

import numpy as np
import pytest

from ...unit.test_layers import ROOT
from .. import tiny_cogvideox as tiny
from ..test_stock_nodes import apart, node
from .http_graphs import (  # noqa: F401  fixtures among them
    CONTROL, LENGTH, MODEL, SIZE, T5, VAE, clip_file, colour, conditioned,
    draw, encoded, graph, load, plain, random_models, sampler)

pytestmark = pytest.mark.usefixtures("random_models")


@pytest.mark.parametrize("name", ["random_i2v.safetensors", "random_15_i2v.safetensors"])
def test_image_to_video(server, name):
    def animated(**inputs):
        nodes = conditioned("ImageToVideo", name, start_image=["picture", 0], **inputs)
        return draw(server, **nodes, picture=colour(0xFF0000, 128), end=colour(0x00FF00))

    first = animated()
    assert first.shape == (LENGTH, SIZE, SIZE, 3) and first.std() > 0.02
    without = draw(server, model=load(name))
    changed = [animated(end_image=["end", 0]), animated(strength=0.5), animated(noise_augmentation=0.2), without]
    assert all(apart(video, first) > 0.0005 for video in changed)
    assert apart(animated(strength=0.0), without) < 1e-6


def test_fun_inpaint(server, clip_file):
    extra = encoded(clip_file) | {"latent": None, "mask": node("SolidMask", value=1.0, width=SIZE, height=SIZE),
                                  "none": node("SolidMask", value=0.0, width=SIZE // 2, height=SIZE),
                                  "part": node("MaskComposite", destination=["mask", 0], source=["none", 0], x=0, y=0,
                                               operation="and")}

    def inpainted(**inputs):
        return draw(server, **extra | conditioned("FunInpaint", "random_inp.safetensors", **inputs),
                    picture=colour(0xFF0000))

    free = inpainted()
    assert apart(free, draw(server, model=load("random_inp.safetensors"))) < 1e-6
    held = [inpainted(start_image=["picture", 0]), inpainted(end_image=["picture", 0]),
            inpainted(video=["frames", 0], mask=["part", 0])]
    assert all(video.shape == (LENGTH, SIZE, SIZE, 3) for video in held)
    assert all(apart(video, free) > 0.0005 for video in held)
    assert apart(inpainted(video=["frames", 0], mask=["mask", 0]), free) < 1e-6


def test_fun_control(server, clip_file):
    extra = encoded(clip_file) | {"latent": None}

    def controlled(**inputs):
        return draw(server, **extra | conditioned("FunControl", "random_control.safetensors",
                                                  control_video=["frames", 0], **inputs))

    free = draw(server, model=load("random_control.safetensors"))
    assert apart(controlled(), free) > 0.0005
    assert apart(controlled(strength=0.0), free) < 1e-6


def test_controlnet(server, plain, clip_file):
    """The shipped workflow's nodes, with the random models in place of the released ones."""
    extra = encoded(clip_file) | {"latent": graph()["latent"]}

    def controlled(strength=1.0):
        return draw(server, **extra, net=node("SanaCogLoadCogVideoXControlNet", control_net_name=CONTROL, weight_dtype="default"),
                    apply=node("ControlNetApplyAdvanced", positive=["positive", 0], negative=["negative", 0],
                               control_net=["net", 0], image=["frames", 0], strength=strength, start_percent=0.0, end_percent=1.0),
                    sampler=sampler(positive=["apply", 0], negative=["apply", 1]))

    assert apart(controlled(), plain) > 0.0005
    assert apart(controlled(strength=0.0), plain) < 1e-6


def test_the_controlnet_workflow(server):
    """As it is shipped, but for the files, the size and the number of steps."""
    from sanacog.headless.launcher import give_inputs

    give_inputs(server.base)
    workflow = json.loads((ROOT / "workflows" / "api" / "cogvideox_controlnet.json").read_text("utf-8"))
    given = {"SanaCogLoadCogVideoXModel": {"model_name": MODEL}, "SanaCogLoadCogVideoXTextEncoder": {"text_encoder_name": T5},
             "SanaCogLoadCogVideoXVAE": {"vae_name": VAE}, "SanaCogLoadCogVideoXControlNet": {"control_net_name": CONTROL},
             "SanaCogEmptyCogVideoXLatent": {"width": SIZE, "height": SIZE}, "KSampler": {"steps": 2}}
    for one in workflow.values():
        one["inputs"] |= given.get(one["class_type"], {})
    assert server.run_prompt(workflow).images


def test_the_tora_workflow(server):
    """As it is shipped, but for the files, the size, the points and the number of steps; the motion shows."""
    tiny.save_tora(server.base / "models" / "controlnet" / "tora")
    workflow = json.loads((ROOT / "workflows" / "api" / "cogvideox_tora.json").read_text("utf-8"))
    size = {"width": SIZE, "height": SIZE, "length": LENGTH}
    given = {"SanaCogLoadCogVideoXModel": {"model_name": MODEL}, "SanaCogLoadCogVideoXTextEncoder": {"text_encoder_name": T5},
             "SanaCogLoadCogVideoXVAE": {"vae_name": VAE}, "SanaCogEmptyCogVideoXLatent": size,
             "SanaCogCogVideoXTora": size | {"trajectories": "[[20, 20], [70, 60]]"}, "SanaCogCogVideoXSigmas": {"steps": 2},
             "RandomNoise": {"noise_seed": 3}}
    for one in workflow.values():
        one["inputs"] |= given.get(one["class_type"], {})
    [key] = [key for key, one in workflow.items() if one["class_type"] == "SanaCogCogVideoXTora"]
    frames = []
    for strength in (1.0, 0.0):
        workflow[key]["inputs"]["strength"] = strength
        frames.append(np.stack(server.run_prompt(workflow).images) / 255.0)
    assert apart(*frames) > 0.0005


def test_both_models_in_one_prompt(server):
    """Sana draws, CogVideoX animates: the two live in one memory management."""
    video = draw(server, **conditioned("ImageToVideo", "random_i2v.safetensors", start_image=["picture", 0]), **{
        "sana": node("SanaCogLoadSanaModel", model_name="sanacog_tiny_sana.safetensors", weight_dtype="default"),
        "gemma": node("SanaCogLoadSanaTextEncoder", text_encoder_name="sanacog_tiny_gemma2.safetensors",
                      tokenizer_name="auto"),
        "dcae": node("SanaCogLoadDCAE", vae_name="sanacog_tiny_dcae.safetensors"),
        "words": node("SanaCogSanaTextEncode", clip=["gemma", 0], text="a large red circle", instruction=True),
        "empty": node("SanaCogEmptySanaLatent", width=256, height=256, batch_size=1),
        "drawn": sampler("sana", positive=["words", 0], negative=["words", 0], latent_image=["empty", 0], steps=2),
        "picture": node("VAEDecode", samples=["drawn", 0], vae=["dcae", 0])})
    assert video.shape == (LENGTH, SIZE, SIZE, 3)
