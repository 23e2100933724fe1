"""Quantise and save a loaded model: the node's work, in process."""

import re
from pathlib import Path

import pytest
import torch

from sanacog.kernels import quant_layers
from sanacog.kernels.quant import FORMATS
from sanacog.storage.checkpoints import open_checkpoint

from . import tiny, tiny_cogvideox
from .sana.sana_model import apart, conditioning, host, model, sample, weights  # noqa: F401
from .cogvideox.video_model import noise as video_noise
from .cogvideox.video_model import text

LAYER = "transformer_blocks.1.ff.conv_inverted"


@pytest.fixture
def output(host, tmp_path):
    import folder_paths

    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path / "output"))
    yield tmp_path / "output"
    folder_paths.set_output_directory(before)


@pytest.fixture
def save(host, output):
    from sanacog.host.quantise import save_quantised

    def save(model, kind="int8", **options):
        report = save_quantised(model, kind, "diffusion_models/small", **options)
        return output / re.match(r"(.*\.safetensors), [\d.,]+ MB\n", report)[1], report
    return save


def read(path):
    checkpoint = open_checkpoint(path)
    return quant_layers.read_layers(checkpoint.load(), quant_layers.from_metadata(checkpoint.metadata))


@pytest.mark.parametrize("kind", list(FORMATS))
def test_a_saved_file_is_the_model(host, model, save, kind):
    before = sample(host, model)
    path, report = save(model, kind)
    assert path.name == "small_00001_.safetensors" and "24 Linear layers quantised" in report and "no time to gain" in report
    tensors, entries = read(path)
    assert {entry["format"] for entry in entries.values()} == {FORMATS[kind]}
    again = host.sana.load_sana(path, "fp32")
    assert again.model.model_config.params == tiny.SANA
    assert 1e-3 < apart(sample(host, again), before) < 0.6
    assert torch.equal(sample(host, model), before)
    assert save(model, kind)[0].name == "small_00002_.safetensors"  # nothing is overwritten


def test_fp8_is_calibrated_by_sampling(host, model, save):
    largest = []
    layer = model.model.diffusion_model.get_submodule(LAYER)
    hook = layer.register_forward_pre_hook(lambda _, inputs: largest.append(float(inputs[0].abs().max())))
    path, report = save(model, "fp8", positive=conditioning(9), negative=conditioning(1, seed=1),
                        latent={"samples": torch.zeros(1, 32, 4, 6)}, steps=2, cfg=3.0)
    hook.remove()
    assert len(largest) in (2, 4)  # two steps, both prompts together or one after the other
    tensors, entries = read(path)
    assert all(f"{layer}.input_scale" in tensors and "full_precision_matrix_mult" not in entry for layer, entry in entries.items())
    assert float(tensors[f"{LAYER}.input_scale"]) * 448 / 2 == pytest.approx(max(largest))
    assert "without calibration" not in report and not layer._forward_pre_hooks
    assert "without calibration" in save(model, "fp8")[1]


def test_cogvideox(host, save, tmp_path):
    from sanacog.host.cogvideox.model import load_cogvideox

    model = load_cogvideox(tiny_cogvideox.save_transformer(tmp_path / "x.safetensors"))
    path, _ = save(model, "fp8", positive=text(), latent={"samples": torch.zeros_like(video_noise())}, steps=2)
    tensors, entries = read(path)
    assert len(entries) == 12 and all(f"{layer}.input_scale" in tensors for layer in entries)
    again = load_cogvideox(path, "fp32")
    assert again.model.model_config.params == tiny_cogvideox.PARAMS


def test_loras_become_part_of_the_file(host, model, save):
    generator = torch.Generator().manual_seed(3)
    down, up = torch.randn(4, 64, generator=generator), torch.randn(320, 4, generator=generator)
    changed, _ = host.comfy.sd.load_lora_for_models(
        model, None, {f"transformer.{LAYER}.lora_A.weight": down, f"transformer.{LAYER}.lora_B.weight": up}, 0.5, 0.0)
    tensors, entries = read(save(changed)[0])
    found = quant_layers.without_layers(tensors, entries, torch.float32)[f"{LAYER}.weight"]
    wanted = tiny.sana().state_dict()[f"{LAYER}.weight"] + 0.5 * up @ down
    assert apart(found, wanted) < 0.012


def test_interrupt_leaves_nothing(host, model, save, output):
    mm = host.comfy.model_management
    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        save(model)
    assert not [path for path in Path(output).rglob("*") if path.is_file()]


def test_refusals(host, model, save, output):
    other = host.comfy.model_patcher.ModelPatcher(torch.nn.Linear(2, 2), "cpu", "cpu")
    with pytest.raises(ValueError, match="Linear model.*only Sana and CogVideoX"):
        save(other)
    with pytest.raises(ValueError, match="both positive and latent"):
        save(model, "fp8", positive=conditioning(9))
    quantised = host.sana.load_sana(save(model, "fp8")[0])
    with pytest.raises(ValueError, match="quantised already"):
        save(quantised)
