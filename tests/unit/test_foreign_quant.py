"""Files of quantisers that nobody here reads are called by their maker, with a way out; and wrapped names are unwrapped."""

import re

import pytest

from sanacog.cogvideo_core import config as cogvideo
from sanacog.cogvideo_core.checkpoint import from_canonical
from sanacog.cogvideo_core.lookalikes import looks_like as looks_like_cogvideo
from sanacog.cogvideo_core.transformer import CogVideoTransformer
from sanacog.kernels.foreign_quant import maker_of
from sanacog.kernels.quant_layers import LEAVES
from sanacog.sana_core.autoencoder_checkpoint import identify_autoencoder
from sanacog.sana_core.config import identify
from sanacog.sana_core.controlnet_checkpoint import identify_controlnet

from .test_stated_config import KINDS, VIDEO

LOADER = {"sana": "Load Sana Model", "dcae": "Load DC-AE", "controlnet": "Load Sana ControlNet",
          "cogvideox": "Load CogVideoX Model", "cogvideox vae": "Load CogVideoX VAE"}


def replaced(shapes, leaves):
    """Matrices' weights in the form of a quantiser: {what goes behind the layer's name: shape}."""
    out = {}
    for key, shape in shapes.items():
        layer = key.removesuffix(".weight")
        if layer != key and len(shape) == 2:
            out |= {layer + leaf: (4, 4) for leaf in leaves}
        else:
            out[key] = shape
    return out


QUANTISERS = {
    "bitsandbytes, 4 bit": (".weight", ".weight.absmax", ".weight.quant_map", ".weight.quant_state.bitsandbytes__nf4",
                            ".weight.nested_absmax", ".weight.nested_quant_map"),
    "bitsandbytes, 8 bit": (".weight", ".SCB", ".weight_format"),
    "quanto": (".weight._data", ".weight._scale", ".input_scale", ".output_scale"),
    "SDNQ": (".weight", ".scale"),
    "SDNQ (SD.Next)": (".weight", ".scale", ".zero_point", ".svd_up", ".svd_down"),
    "torchao": ("._weight_qdata", "._weight_scale"),
    "a GGUF quantiser with blocks other than Q4_0": (".Q5_K_qweight",),
    "Nunchaku": (".qweight", ".wscales", ".smooth_factor", ".smooth_factor_orig", ".proj_down", ".proj_up"),
    "GPTQ, AWQ": (".qweight", ".qzeros", ".scales", ".g_idx"),
}


@pytest.mark.parametrize("maker", QUANTISERS)
@pytest.mark.parametrize("kind", ["sana", "cogvideox", "controlnet"])
def test_makers_are_named(kind, maker):
    _, of_file, identify_kind = KINDS[kind]
    with pytest.raises(ValueError) as error:
        identify_kind(replaced(of_file, QUANTISERS[maker]), None, "file.safetensors")
    said = str(error.value)
    assert said.startswith("file.safetensors: ") and "quantised by " + maker in said
    assert "made from" in said and "weight_dtype" in said and "damaged" not in said and "get it again" not in said.lower()
    assert LOADER[kind] not in said


@pytest.mark.parametrize("maker", ["SDNQ", "quanto"])
def test_makers_of_autoencoders(maker):
    _, of_file, _ = KINDS["dcae"]
    with pytest.raises(ValueError, match=f"a DC-AE autoencoder quantised by {maker}.*Take the file that it was made from"):
        identify_autoencoder(replaced(of_file, QUANTISERS[maker]), None, "file.safetensors")
    convolutions = {key.replace(".weight", "._weight_qdata") if ".conv1.conv.weight" in key else key: shape
                    for key, shape in KINDS["cogvideox vae"][1].items()}
    with pytest.raises(ValueError, match="a CogVideoX VAE quantised by torchao.*Take the file that it was made from"):
        cogvideo.identify_autoencoder(convolutions, None, "file.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_has_no_foreign_maker(kind):
    shapes = KINDS[kind][1]
    assert not maker_of(shapes)
    assert not maker_of(replaced(shapes, (".weight", *(f".{leaf}" for leaf in LEAVES))))


PREFIXES = ("module.", "transformer.", "model.", "base_model.model.", "module.transformer.", "pipe.net.", "module._orig_mod.")
WRAPPED = [(kind, prefix) for kind in KINDS for prefix in PREFIXES + (
    ("vae.", "first_stage_model.", "module.vae.") if kind in ("dcae", "cogvideox vae")
    else ("model.diffusion_model.", "module.model.diffusion_model.", "dit."))]


@pytest.mark.parametrize("kind, prefix", WRAPPED)
def test_one_prefix_of_all_keys_goes(kind, prefix):
    params, of_file, identify_kind = KINDS[kind]
    config = {"num_cross_attention_heads": 2} if kind in ("sana", "controlnet") else (
        {"norm_num_groups": 4} if kind == "cogvideox vae" else {})
    plain, wrapped = of_file, {prefix + key: shape for key, shape in of_file.items()}
    assert identify_kind(wrapped, config).params == identify_kind(plain, config).params


@pytest.mark.parametrize("kind", KINDS)
def test_names_behind_different_prefixes_are_refused_and_no_loader_advises_itself(kind):
    _, of_file, identify_kind = KINDS[kind]
    config = {"num_cross_attention_heads": 2, "norm_num_groups": 4}
    odd = {("model." if number % 2 else "ema.") + key: shape for number, (key, shape) in enumerate(of_file.items())}
    for shapes in (odd, *({k: s for k, s in of_file.items() if k != key} for key in of_file)):
        try:
            identify_kind(shapes, config, "x.safetensors")
        except ValueError as error:
            assert LOADER[kind] not in str(error), error


def test_sat_checkpoints_of_lora_training():
    keys = from_canonical(CogVideoTransformer(VIDEO, device="meta").state_dict(), "sat")
    changed = {}
    for key, t in keys.items():
        if ".attention." in key:
            layer, _, leaf = key.rpartition(".")
            changed |= {f"{layer}.original.{leaf}": (4, 4), f"{layer}.matrix_A.0": (4, 4), f"{layer}.matrix_B.0": (4, 4)}
        else:
            changed[key] = tuple(t.shape)
    for shapes in (changed, {f"model.diffusion_model.{key}": shape for key, shape in changed.items()}):
        with pytest.raises(ValueError, match="a LoRA training: load the model from its own file.*this file with Load LoRA"):
            cogvideo.identify(shapes, None, "mp_rank_00_model_states.pt")
    # Without the model's own matrices it is a LoRA like any other.
    assert looks_like_cogvideo([key for key in changed if "matrix_" in key]).startswith("a LoRA: load the model first")
    with pytest.raises(ValueError, match="not a Sana transformer: this is a LoRA"):
        identify(changed)


def test_a_checkpoint_without_the_part_says_what_it_holds():
    sana = {f"model.diffusion_model.{key}": shape for key, shape in KINDS["sana"][1].items()}
    whole = sana | {"text_encoders.gemma2_2b.logit_scale": ()}
    for refuse in (identify_autoencoder, cogvideo.identify_autoencoder):
        with pytest.raises(ValueError, match="a Sana transformer.*Save Checkpoint.*holds a diffusion model and a text encoder"):
            refuse(whole, None, "whole.safetensors")
    autoencoder = {f"first_stage_model.{key}": shape for key, shape in KINDS["dcae"][1].items()}
    for refuse in (identify, identify_controlnet, cogvideo.identify):
        with pytest.raises(ValueError, match="a DC-AE autoencoder"):
            refuse(autoencoder, None, "vae.safetensors")
    video = {f"first_stage_model.{key}": shape for key, shape in KINDS["cogvideox vae"][1].items()}
    for refuse in (identify, cogvideo.identify, identify_autoencoder):
        with pytest.raises(ValueError, match="a CogVideoX VAE"):
            refuse(video, None, "vae.safetensors")
    assert re.search("CogVideoX VAE", looks_like_cogvideo(video))
