"""The shipped workflows of Step Cache and Enhance Prompt, over HTTP on the embedded models."""

import copy
import json
import re

import numpy as np
import pytest

from sanacog.headless.installation import ROOT


def shipped(name):
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text("utf-8"))


def changed(workflow, **inputs):
    """kind__input=value, for every node of the kind SanaCog<kind> or <kind>."""
    workflow = copy.deepcopy(workflow)
    for name, value in inputs.items():
        kind, _, key = name.partition("__")
        for node in workflow.values():
            if node["class_type"].removeprefix("SanaCog") == kind:
                node["inputs"][key] = value
    return workflow


@pytest.mark.parametrize("method", ["first block", "TeaCache"])
def test_step_cache(server, method):
    def draw(threshold):
        printed = len(server.log())
        clips = server.run_prompt(changed(shipped("cogvideox_step_cache"), StepCache__threshold=threshold, KSampler__seed=3,
                                          StepCache__method=method)).clips
        return clips[next(name for name in clips if name.endswith("webp"))] / 255.0, server.log()[printed:]

    full, said = draw(0.0)
    assert "Step Cache" not in said
    fast, said = draw(0.15 if method == "first block" else 0.5)
    reused, of = map(int, re.search(rf"Step Cache \({method}.*: (\d+) of (\d+) evaluations reused", said).groups())
    assert of == 20 and 0 < reused < 18
    assert 0 < np.abs(fast - full).mean() < 0.05


def test_enhance_prompt(server):
    workflow = changed(shipped("sana_enhance_prompt"), LoadSanaModel__model_name="sanacog_tiny_sana.safetensors",
                       LoadSanaTextEncoder__text_encoder_name="sanacog_tiny_gemma2.safetensors",
                       LoadDCAE__vae_name="sanacog_tiny_dcae.safetensors", EmptySanaLatent__width=256,
                       EmptySanaLatent__height=256, EnhancePrompt__max_length=12, KSampler__steps=2)
    if "TextGenerate" not in server.object_info:
        assert "has no way to write text with a CLIP: 0.16 or newer is needed" in server.expect_error(workflow)
        return
    pictures = [server.run_prompt(changed(workflow, EnhancePrompt__seed=seed)).images[0] for seed in (1, 2)]
    assert pictures[0].shape == (256, 256, 3) and np.abs(pictures[0].astype(int) - pictures[1]).mean() > 0.1
