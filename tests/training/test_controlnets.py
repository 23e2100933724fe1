"""A ControlNet to go on from: its weights are the file's, in either wiring, and one that does not fit is refused by what it is."""

import json
from dataclasses import asdict, replace

import pytest
import safetensors.torch
import torch

from sanacog.sana_core import controlnet_checkpoint
from sanacog.sana_core.controlnet import SanaControlNet
from sanacog.training import config_files, controlnets, recipe
from sanacog.training.embedded.transformer import PARAMS
from sanacog.training.models import Models

from .runs import ROOT

FILE = ROOT / "models" / "controlnet" / "sanacog_tiny_sana_controlnet.safetensors"


def random_controlnet(path, params, blocks, wiring):
    control = SanaControlNet(params, blocks, wiring)
    with torch.no_grad():
        for parameter in control.parameters():
            parameter.normal_(std=0.1)
    config = asdict(replace(params, num_layers=blocks)) | {"_class_name": "SanaControlNetModel", "wiring": wiring}
    safetensors.torch.save_file(controlnet_checkpoint.from_canonical(control.state_dict(), "diffusers"), path,
                                {"format": "pt", "config": json.dumps(config)})
    return control.state_dict()


def test_the_weights_are_the_files():
    control = controlnets.load(FILE, PARAMS, 3)
    tensors = controlnet_checkpoint.to_canonical(safetensors.torch.load_file(FILE), "diffusers")
    assert all(torch.equal(t, tensors[name].float()) for name, t in control.state_dict().items())
    assert controlnets.load(FILE, PARAMS, 3, meta=True).input_block.weight.is_meta


def test_the_other_wiring_is_kept_to_the_result(tmp_path):
    weights = random_controlnet(tmp_path / "native.safetensors", PARAMS, 2, "native")
    run = config_files.load(["train/tiny_controlnet"], [
        "data.path=x", f"train.controlnet={tmp_path / 'native.safetensors'}", "objective.control_layers=2"], environ={})
    made = recipe.build(run.config, Models(run.config.model))
    assert made.network.control.wiring == "native"
    made.write(tmp_path / "result.safetensors", {name: p.detach() for name, p in made.named})
    again = controlnets.load(tmp_path / "result.safetensors", PARAMS, 2)
    assert again.wiring == "native"
    assert all((t - weights[name]).abs().max() < 1e-3 for name, t in again.state_dict().items())  # fp16 in between


@pytest.mark.parametrize("params, blocks, said", [
    (PARAMS, 7, "it has 3 copied blocks, and objective.control_layers is 7. Set objective.control_layers=3"),
    (replace(PARAMS, num_attention_heads=8), 3, "model.transformer is another base. Take its own"),
])
def test_one_that_does_not_fit(params, blocks, said):
    with pytest.raises(ValueError, match=said):
        controlnets.load(FILE, params, blocks)
