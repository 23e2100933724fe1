"""python run.py convert --quantize fp8 --text-encoder: the embedded models, calibrated through the host."""

import pytest
import torch

from sanacog.headless import installation
from sanacog.commands.convert import main
from sanacog.kernels import quant_layers
from sanacog.storage.checkpoints import open_checkpoint

from .sana.sana_model import host  # noqa: F401

MODELS = installation.ROOT / "models"
PAIRS = [("sanacog_tiny_sana", "sanacog_tiny_gemma2"), ("sanacog_tiny_cogvideox", "sanacog_tiny_t5"),
         ("sanacog_tiny_cogvideox_i2v", "sanacog_tiny_t5")]


def convert(output, model, *options):
    source = MODELS / "diffusion_models" / f"{model}.safetensors"
    assert main([str(source), "--output", str(output), "--quantize", "fp8", *map(str, options)]) == 0
    file = open_checkpoint(output)
    return quant_layers.read_layers(file.load(), quant_layers.from_metadata(file.metadata))


@pytest.mark.parametrize("model, text_encoder", PAIRS)
def test_every_layer_has_the_scale_of_its_inputs(host, tmp_path, capsys, model, text_encoder):
    prompts, encoder = tmp_path / "prompts.txt", MODELS / "text_encoders" / f"{text_encoder}.safetensors"
    prompts.write_text("a large red circle on a blue background\n\na green square\n")
    tensors, entries = convert(tmp_path / "both.safetensors", model, "--text-encoder", encoder, "--prompts", prompts)
    assert f"{len(entries)} layers have an input_scale" in capsys.readouterr().out
    assert all("full_precision_matrix_mult" not in entry for entry in entries.values())
    prompts.write_text("a green square\n")
    one, _ = convert(tmp_path / "one.safetensors", model, "--text-encoder", encoder, "--prompts", prompts)
    scales = [(tensors[f"{layer}.input_scale"], one[f"{layer}.input_scale"]) for layer in entries]
    # A prompt more can only find larger inputs, and finds some.
    assert all(0 < few <= many for many, few in scales) and any(few < many for many, few in scales)
    plain, marked = convert(tmp_path / "plain.safetensors", model)
    assert "--text-encoder FILE calibrates" in capsys.readouterr().out and not any("input_scale" in key for key in plain)
    assert all(torch.equal(plain[f"{layer}.weight"].view(torch.uint8), tensors[f"{layer}.weight"].view(torch.uint8))
               for layer in marked)


def test_refusals(host, tmp_path, capsys):
    source, output = MODELS / "diffusion_models" / "sanacog_tiny_sana.safetensors", tmp_path / "x.safetensors"
    encoder, empty = MODELS / "text_encoders" / "sanacog_tiny_gemma2.safetensors", tmp_path / "empty.txt"
    empty.write_text("\n")
    for options, message in (("int8", "--text-encoder", encoder), "only fp8"), (("fp8", "--prompts", empty), "text encoder"), \
            (("fp8", "--text-encoder", encoder, "--prompts", empty), "no prompt"), \
            (("fp8", "--text-encoder", tmp_path / "none"), "no such file"):
        assert main([str(source), "--output", str(output), "--quantize", *map(str, options)]) == 1
        assert message in capsys.readouterr().err and not output.exists()
