"""Weights that hold NaN or infinity: the first result of every kind of model names the tensor and the file."""

import re
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .first_results import MODELS, uses

DAMAGE = [float("nan"), float("inf")]


@pytest.fixture(scope="module")
def host(comfyui_path):
    with torch.inference_mode():
        yield SimpleNamespace(models=MODELS, uses=uses(comfyui_path))


def read(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


@pytest.mark.parametrize("name", [
    "diffusion_models/sanacog_tiny_sana", "diffusion_models/sanacog_tiny_cogvideox", "controlnet/sanacog_tiny_sana_controlnet",
    "vae/sanacog_tiny_dcae", "vae/sanacog_tiny_cogvideox_vae", "text_encoders/sanacog_tiny_gemma2",
    "text_encoders/sanacog_tiny_t5", "loras/sanacog_tiny_sana_outline_lora"])
def test_every_loader(host, tmp_path, name):
    tensors, metadata = read(host.models / f"{name}.safetensors")
    # A matrix that every result goes through.
    key = [key for key, t in sorted(tensors.items()) if t.is_floating_point() and t.ndim > 1 and not re.match(
        r"encoder\.(mid|down|conv)|shared|.*embed", key)][-1]
    tensors[key] = tensors[key].clone()
    path, (load, use) = tmp_path / "broken.safetensors", host.uses[name]
    use(load(host.models / f"{name}.safetensors"))
    for value in DAMAGE:
        tensors[key].view(-1)[0] = value
        save_file(tensors, path, metadata)
        with pytest.raises(ValueError, match="broken.safetensors: .*holds NaN or infinite numbers.*earlier checkpoint") as error:
            use(load(path))
        assert any(part in str(error.value) for part in key.split(".")[-3:-1])  # a LoRA's parts are named as ComfyUI names them


def test_left_overs_of_training_may_hold_anything(host, tmp_path):
    """Nothing reads them: a null caption, say, that was never filled."""
    tensors, metadata = read(host.models / "diffusion_models" / "sanacog_tiny_sana.safetensors")
    path = tmp_path / "left_over.safetensors"
    save_file(tensors | {"y_embedder.y_embedding": torch.full((300, 96), torch.nan)}, path, metadata)
    load, use = host.uses["diffusion_models/sanacog_tiny_sana"]
    use(load(path))


@pytest.mark.parametrize("scale", ["weight", "weight_scale"])
def test_quantised_weights_and_their_scales(host, tmp_path, scale):
    tensors, metadata = read(host.models / "diffusion_models" / "sanacog_tiny_sana.safetensors")
    layer = "transformer_blocks.1.attn2.to_q"
    tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"].to(torch.float8_e4m3fn)
    tensors[f"{layer}.weight_scale"] = torch.ones(())
    tensors[f"{layer}.comfy_quant"] = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    path = tmp_path / "quantised.safetensors"
    save_file(tensors, path, metadata)
    load, use = host.uses["diffusion_models/sanacog_tiny_sana"]
    use(load(path))
    broken = tensors[f"{layer}.{scale}"].clone()
    if scale == "weight":
        broken.view(torch.uint8)[3, 4] = 0x7F
    else:
        broken.fill_(torch.inf)
    save_file(tensors | {f"{layer}.{scale}": broken}, path, metadata)
    with pytest.raises(ValueError, match=f"quantised.safetensors: {layer}.{scale} holds NaN"):
        use(load(path))


def test_every_result_is_refused_and_others_inputs_are_not_the_files_fault(host, tmp_path, caplog):
    tensors, metadata = read(host.models / "vae" / "sanacog_tiny_dcae.safetensors")
    load, use = host.uses["vae/sanacog_tiny_dcae"]
    key = next(key for key in tensors if key.startswith("decoder.") and key.endswith("weight"))
    save_file(tensors | {key: torch.full_like(tensors[key], torch.nan)}, tmp_path / "a.safetensors", metadata)
    vae = load(tmp_path / "a.safetensors")
    for _ in range(2):
        with pytest.raises(ValueError, match="a.safetensors"):
            use(vae)
    with pytest.raises(ValueError, match="a.safetensors"):  # pieces that equal the whole do not run the network as one
        vae.decode_tiled(torch.zeros(1, 32, 4, 4), tile_x=2, tile_y=2)
    sound = load(host.models / "vae" / "sanacog_tiny_dcae.safetensors")
    sound.first_stage_model.decode(torch.full((1, 32, 2, 2), torch.nan).to(sound.vae_dtype))
    assert "its weights do not" in caplog.text


def test_convert(host, tmp_path):
    from sanacog.commands.convert import convert

    tensors, metadata = read(host.models / "diffusion_models" / "sanacog_tiny_sana.safetensors")
    save_file(tensors | {"proj_out.bias": torch.full_like(tensors["proj_out.bias"], torch.nan)}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(ValueError, match="a.safetensors: proj_out.bias holds NaN"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()
