"""Configs beside and inside of files: what is believed of them, what is ignored, what is refused, and by which words."""

import json
import math
import re
from dataclasses import asdict, fields, replace

import pytest
import torch

from sanacog.cogvideo_core import config as cogvideo
from sanacog.cogvideo_core.autoencoder import CogVideoVAE
from sanacog.cogvideo_core.checkpoint import check_autoencoder_shapes as video_vae_shapes, check_shapes as cogvideo_shapes
from sanacog.cogvideo_core.config import CogVideoParams, CogVideoVAEParams
from sanacog.cogvideo_core.transformer import CogVideoTransformer
from sanacog.kernels.stated_config import BESIDE, INSIDE, SHARED, read_config_tensor
from sanacog.sana_core.autoencoder import AutoencoderDC, DCAEParams
from sanacog.sana_core.autoencoder_checkpoint import check_shapes as dcae_shapes, identify_autoencoder
from sanacog.sana_core.checkpoint import check_shapes as sana_shapes
from sanacog.sana_core.config import SanaParams, identify
from sanacog.sana_core.controlnet import SanaControlNet
from sanacog.sana_core.controlnet_checkpoint import check_shapes as control_shapes, identify_controlnet
from sanacog.sana_core.transformer import SanaTransformer

from .sana_releases import SANA_15_16, SANA_16, diffusers_config, nvlabs_shapes
from .test_cogvideo_config import VARIANTS, meta_state
from .test_sana_identify import diffusers_shapes


def shapes(network):
    return {key: tuple(t.shape) for key, t in network.state_dict().items()}


# A file in a folder of several models

SIZES = {"512": 16, "1024": 32, "2K": 64, "4K": 128}


def sana_config(size):
    return diffusers_config(SANA_16, SIZES[size], {"2K": 1.0, "4K": 2.0}.get(size)) | {"_class_name": "SanaTransformer2DModel"}


@pytest.mark.parametrize("name, neighbour, variant", [
    ("Sana_1600M_4Kpx_BF16", "1024", "Sana 1.6B 4K"),
    ("Sana_1600M_1024px_BF16", "512", "Sana 1.6B 1024px BF16"),  # without the clip of fp16
    ("Sana_1600M_2Kpx_BF16", "4K", "Sana 1.6B 2K"),
])
def test_the_name_goes_before_a_config_that_may_be_a_neighbours(name, neighbour, variant):
    alone = identify(diffusers_shapes(SANA_16), None, f"models/diffusion_models/{name}.safetensors")
    found = identify(diffusers_shapes(SANA_16), sana_config(neighbour), f"models/diffusion_models/{name}.safetensors", SHARED)
    assert (found.params, found.variant) == (alone.params, variant)
    [warning] = found.warnings
    assert "disagree" in warning and "the name is believed" in warning


@pytest.mark.parametrize("place", [INSIDE, BESIDE])
def test_a_config_of_this_file_alone_goes_before_its_name(place):
    found = identify(diffusers_shapes(SANA_16), sana_config("1024"), "Sana_1600M_4Kpx_BF16.safetensors", place)
    assert found.variant == "Sana 1.6B 1024px BF16"
    [warning] = found.warnings
    assert "the config is believed" in warning and "sample_size 128, the config 32" in warning


def test_a_shared_config_tells_what_the_name_does_not():
    found = identify(diffusers_shapes(SANA_16), sana_config("2K"), "finetune.safetensors", SHARED)
    assert (found.variant, found.warnings) == ("Sana 1.6B 2K", ())


def test_sizes_that_tensors_tell_need_no_config():
    found = identify(nvlabs_shapes(SANA_16, 64 * 64), sana_config("1024"), "x.pth", BESIDE)
    assert found.variant == "Sana 1.6B 2K" and "sample_size 32, tensors 64" in found.warnings[0]


@pytest.mark.parametrize("name, scale", [("SANA_Sprint_1.6B_1024px_teacher", 0.001), ("SANA1.5_1.6B_1024px", 1.0)])
def test_teachers_and_sana_15_side_by_side(name, scale):
    other = diffusers_config(SANA_15_16, timestep_scale=1.001 - scale)
    assert identify(diffusers_shapes(SANA_15_16), other, f"{name}.safetensors", SHARED).params.timestep_scale == scale


@pytest.mark.parametrize("name, variant", [
    ("sana4k", "Sana 1.6B 4K"), ("sana2k_bf16", "Sana 1.6B 2K"), ("Sana-4K", "Sana 1.6B 4K"),
    ("sana_1600m_4kpx", "Sana 1.6B 4K"), ("Sana1600M4Kpx", "Sana 1.6B 4K"), ("sana_1.6B_2k_fp8", "Sana 1.6B 2K"),
    ("sana512", "Sana 1.6B 512px"), ("sana_4kbf16", "Sana 1.6B 4K"), ("Sana-1600M-1024px", "Sana 1.6B 1024px"),
    ("sana 1024x1024 bf16", "Sana 1.6B 1024px BF16"),
    ("sana_step14096", "Sana 1.6B 1024px BF16"), ("sana1.4k5", "Sana 1.6B 1024px BF16"),  # no sizes
])
def test_names(name, variant):
    assert identify(diffusers_shapes(SANA_16), None, f"{name}.safetensors").variant == variant


def cogvideo_config(variant):
    """As diffusers writes it: all fields of the network."""
    params = asdict(CogVideoParams(**VARIANTS[variant][0]))
    for ours in ("conditioning", "scaling_factor", "snr_shift_scale", "resize_positions"):
        del params[ours]
    if "1.5" not in variant:  # from before there were these
        del params["patch_size_t"], params["ofs_embed_dim"]
    else:
        params |= dict(sample_height=300, sample_width=300)
    return params | {"_class_name": "CogVideoXTransformer3DModel"}


@pytest.mark.parametrize("place", [BESIDE, SHARED])
@pytest.mark.parametrize("variant, other", [
    ("CogVideoX 5B", "CogVideoX 2B"), ("CogVideoX 2B", "CogVideoX 5B"), ("CogVideoX 5B", "CogVideoX 1.5 5B"),
    ("CogVideoX 1.5 5B", "CogVideoX 5B"), ("CogVideoX 5B", "CogVideoX 5B I2V"), ("CogVideoX 5B I2V", "CogVideoX-Fun 5B Control")])
def test_configs_of_other_cogvideox_models(variant, other, place):
    state = {key: tuple(t.shape) for key, t in meta_state(variant).items()}
    found = cogvideo.identify(state, cogvideo_config(other), "model.safetensors", place)
    assert found.params == CogVideoParams(**VARIANTS[variant][0])
    [warning] = found.warnings
    assert "of another model" in warning and "ignored" in warning
    own = cogvideo.identify(state, cogvideo_config(variant), "model.safetensors", place)
    assert own.warnings == () and replace(own.params, sample_height=60, sample_width=90) == found.params


def test_conditioning_by_name_and_by_a_neighbours_config():
    state = {key: tuple(t.shape) for key, t in meta_state("CogVideoX-Fun 5B Control").items()}
    config = {"conditioning": "control"}
    found = cogvideo.identify(state, config, "some-i2v-finetune.safetensors", SHARED)
    assert found.params.conditioning == "image" and "the name is believed" in found.warnings[0]
    found = cogvideo.identify(state, config, "some-i2v-finetune.safetensors", BESIDE)
    assert found.params.conditioning == "control" and "the config is believed" in found.warnings[0]


# Small models of all kinds

SANA = SanaParams(2, 2, 2, 32, caption_channels=40, sample_size=8)
DCAE = DCAEParams(encoder_block_types=("ResBlock", "EfficientViTBlock"), decoder_block_types=("ResBlock", "EfficientViTBlock"),
                  encoder_block_out_channels=(8, 32), decoder_block_out_channels=(8, 32), encoder_layers_per_block=(1, 1),
                  decoder_layers_per_block=(1, 1), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
                  decoder_act_fns=("silu",) * 2)
VIDEO = CogVideoParams(num_layers=2, num_attention_heads=2, attention_head_dim=32, time_embed_dim=32, text_embed_dim=64)
VIDEO_VAE = CogVideoVAEParams(block_out_channels=(8, 8, 8, 16), layers_per_block=1, norm_num_groups=4)
KINDS = {
    "sana": (SANA, shapes(SanaTransformer(SANA, device="meta")), identify),
    "dcae": (DCAE, shapes(AutoencoderDC(DCAE, device="meta")), identify_autoencoder),
    "controlnet": (SANA, shapes(SanaControlNet(SANA, 2, "native", device="meta")), identify_controlnet),
    "cogvideox": (VIDEO, shapes(CogVideoTransformer(VIDEO, device="meta")), cogvideo.identify),
    "cogvideox vae": (VIDEO_VAE, shapes(CogVideoVAE(VIDEO_VAE, device="meta")), cogvideo.identify_autoencoder),
}


def found_as(kind, change=None, place=INSIDE):
    params, of_file, identify_kind = KINDS[kind]
    return identify_kind(of_file, json.loads(json.dumps(asdict(params))) | (change or {}), "folder/model.safetensors",
                         config_place=place)


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_config_is_believed_without_a_word(kind):
    found = found_as(kind)
    params = replace(found.params, mlp_ratio=2.5) if hasattr(found.params, "mlp_ratio") else found.params
    assert (params, found.warnings) == (KINDS[kind][0], ())


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_a_wrong_rank_or_without_numbers(kind):
    """Refused by identify or by the check of all shapes after it, and nothing else is raised from deeper inside."""
    params, of_file, identify_kind = KINDS[kind]
    check = {"sana": sana_shapes, "dcae": dcae_shapes, "controlnet": control_shapes, "cogvideox": cogvideo_shapes,
             "cogvideox vae": video_vae_shapes}[kind]
    config = json.loads(json.dumps(asdict(params)))
    for key, shape in of_file.items():
        if ".1." in key:
            continue  # as in the first block
        for odd in ((), (0,) * len(shape), (*shape, 3)):
            with pytest.raises(ValueError, match="x.safetensors: "):
                changed = of_file | {key: odd}
                check(changed, identify_kind(changed, config, "x.safetensors"), "x.safetensors")


# What no field of any config may be. A text is right where there are texts, and so on.
WRONG = ["20", [], [[1]], {}, None, True, 2.5, -1, 0, 10**12, 1e300, math.nan, [None], ["ResBlock", 3]]


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_a_wrong_type_or_size(kind):
    """Each either fits the field's type, or is named in an error; nothing else is raised from deeper inside."""
    refused = {field.name: 0 for field in fields(KINDS[kind][0])}
    for name in refused:
        for value in WRONG:
            try:
                found_as(kind, {name: value}, BESIDE)
            except ValueError as error:
                message = str(error)
                if re.search(rf"says that {name} is ", message):
                    refused[name] += 1
                    assert message.startswith("folder/model.safetensors: the config.json beside it")
                    assert "expected" in message and message.endswith("Correct that config.json, or take it away.")
                else:  # well formed, and believed until it met the tensors
                    assert "config" in message, message
    assert min(refused.values()) >= 4, refused


@pytest.mark.parametrize("kind, change, said", [
    ("sana", {"num_layers": "2"}, r"num_layers is '2', expected a whole number from 1 to 65536"),
    ("sana", {"clamp_fp16": "no"}, "clamp_fp16 is 'no', expected true or false"),
    ("sana", {"interpolation_scale": -2.0}, "interpolation_scale is -2.0, expected a number above 0.* or null"),
    ("controlnet", {"wiring": "sideways"}, "wiring is 'sideways', expected one of native, diffusers"),
    ("dcae", {"decoder_act_fns": ["silu", "gelu"]}, "decoder_act_fns is .*gelu.*, expected a list, each entry one of silu, relu"),
    ("dcae", {"encoder_layers_per_block": [1, -1]}, "encoder_layers_per_block is .*-1.*, expected a list, each entry a whole number from 0"),
    ("cogvideox", {"conditioning": "magic"}, "conditioning is 'magic', expected one of none, image"),
    ("cogvideox", {"sample_height": 60.0}, "sample_height is 60.0, expected a whole number"),
    ("cogvideox vae", {"temporal_compression_ratio": 8}, "temporal_compression_ratio is 8, expected one of 4"),
])
def test_words_of_the_refusal(kind, change, said):
    with pytest.raises(ValueError, match=f"^folder/model.safetensors: the config inside the file says that {said}"):
        found_as(kind, change)


def test_a_grid_smaller_than_a_patch():
    with pytest.raises(ValueError, match="sample_height and sample_width are 1 and 90, less than one patch"):
        found_as("cogvideox", {"sample_height": 1})


@pytest.mark.parametrize("kind, change", [
    ("sana", {"_class_name": "CogVideoXTransformer3DModel", "sample_size": 64}),
    ("sana", {"_class_name": "UNet2DConditionModel", "sample_size": [64, 64]}),  # nobody's business how it is written
    ("dcae", {"_class_name": "SanaTransformer2DModel", "scaling_factor": 9.0}),
    ("controlnet", {"_class_name": "FluxControlNetModel", "wiring": "diffusers"}),
    ("cogvideox", {"_class_name": "WanTransformer3DModel", "norm_eps": 0.5}),
    ("cogvideox", {"architectures": ["T5EncoderModel"], "model_type": "t5", "norm_eps": 0.5}),
    ("cogvideox vae", {"_class_name": "CogVideoXTransformer3DModel", "norm_eps": 1e-5}),
])
def test_configs_of_another_class(kind, change):
    try:
        found = found_as(kind, change, BESIDE)
    except ValueError as error:  # a size that was never released needs its config, and this is none
        assert kind in ("sana", "controlnet", "cogvideox vae") and "config" in str(error)
        if kind != "cogvideox vae":
            assert change["_class_name"] in str(error)
        return
    [warning] = found.warnings
    assert (change.get("_class_name") or "T5EncoderModel") in warning and "ignored" in warning


def test_a_video_vae_keeps_its_epsilon_beside_a_transformers_config():
    released = shapes(CogVideoVAE(device="meta"))
    for config in (cogvideo_config("CogVideoX 5B"), {"norm_eps": 1e-5, "in_channels": 16}):
        found = cogvideo.identify_autoencoder(released, config, "vae.safetensors", SHARED)
        assert found.params == CogVideoVAEParams() and "ignored" in found.warnings[0]


def test_heads_that_do_not_fit_the_width():
    with pytest.raises(ValueError, match="no config that tells.*num_cross_attention_heads 5, width 64"):
        found_as("sana", {"num_cross_attention_heads": 5, "cross_attention_head_dim": 32})


@pytest.mark.parametrize("tensor", [
    torch.tensor(list(b"{broken"), dtype=torch.uint8), torch.tensor([], dtype=torch.uint8), torch.ones(4, dtype=torch.bfloat16),
    torch.tensor(list(b"[1]"), dtype=torch.uint8), torch.tensor([-1, 300]), torch.tensor([255, 254], dtype=torch.uint8)])
def test_saved_configs_that_cannot_be_read(tensor):
    with pytest.raises(ValueError, match="^a.safetensors: its tensor sana_config is no config in JSON"):
        read_config_tensor(tensor, "sana_config", "a.safetensors: ")
