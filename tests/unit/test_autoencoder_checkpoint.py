"""DC-AE files: which one is it, its layouts there and back, and what is refused."""

import json
from dataclasses import asdict, replace

import pytest
import torch

import diffusers
from sanacog.sana_core.autoencoder import AutoencoderDC, DCAEParams
from sanacog.sana_core.autoencoder_checkpoint import (LAYOUTS, check_shapes, from_canonical, identify_autoencoder,
                                                      to_canonical)

SANA = DCAEParams()
LITE = replace(SANA, decoder_block_types=("ResBlock",) * 6, decoder_layers_per_block=(0, 3, 5, 4, 4, 4),
               decoder_qkv_multiscales=((),) * 6, upsample_block_type="pixel_shuffle", decoder_conv_act_fn="silu")
TINY = DCAEParams(
    attention_head_dim=16,
    **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in dict(
        block_types=["ResBlock"] * 2 + ["EfficientViTBlock"] * 2, block_out_channels=(8, 16, 32, 64),
        layers_per_block=(0, 1, 1, 2), qkv_multiscales=[[], [], [3, 5], [5]]).items()},
    decoder_act_fns="silu")
UNSHUFFLE = replace(TINY, downsample_block_type="pixel_unshuffle", upsample_block_type="pixel_shuffle")
ALL = dict(sana=SANA, lite=LITE, tiny=TINY, unshuffle=UNSHUFFLE)


def shapes_of(params):
    return {key: tuple(t.shape) for key, t in AutoencoderDC(params, device="meta").state_dict().items()}


def in_layout(params, layout):
    """{key: shape} of the released file."""
    return {key: tuple(t.shape)
            for key, t in from_canonical(AutoencoderDC(params, device="meta").state_dict(), layout).items()}


def test_sana_key_table():
    """The real DC-AE: the keys and shapes of diffusers, 312,250,275 parameters; 339 keys as efficientvit has them."""
    ours = shapes_of(SANA)
    with torch.device("meta"):
        theirs = diffusers.AutoencoderDC(**asdict(SANA)).state_dict()
    assert ours == {key: tuple(t.shape) for key, t in theirs.items()}
    assert len(ours) == 375
    assert sum(torch.Size(shape).numel() for shape in ours.values()) == 312_250_275
    native = in_layout(SANA, "efficientvit")
    assert len(native) == 339
    # One of each kind, as efficientvit's modules nest.
    assert native["encoder.project_in.conv.weight"] == (128, 3, 3, 3)
    assert native["encoder.stages.0.op_list.1.main.conv2.norm.bias"] == (128,)
    assert native["encoder.stages.0.op_list.2.main.conv.weight"] == (256, 128, 3, 3)
    assert native["encoder.stages.3.op_list.0.context_module.main.qkv.conv.weight"] == (1536, 512, 1, 1)
    assert native["encoder.stages.3.op_list.0.context_module.main.aggreg.0.0.weight"] == (1536, 1, 5, 5)
    assert native["encoder.stages.3.op_list.0.context_module.main.aggreg.0.1.weight"] == (1536, 32, 1, 1)
    assert native["decoder.stages.5.op_list.2.context_module.main.proj.conv.weight"] == (1024, 2048, 1, 1)
    assert native["decoder.stages.5.op_list.0.context_module.main.proj.norm.weight"] == (1024,)
    assert native["decoder.stages.4.op_list.0.main.conv.conv.bias"] == (1024,)
    assert native["decoder.stages.4.op_list.1.local_module.main.inverted_conv.conv.weight"] == (8192, 1024, 1, 1)
    assert native["decoder.stages.4.op_list.1.local_module.main.depth_conv.conv.weight"] == (8192, 1, 3, 3)
    assert native["decoder.stages.4.op_list.1.local_module.main.point_conv.norm.bias"] == (1024,)
    assert native["encoder.project_out.main.op_list.0.conv.weight"] == (32, 1024, 3, 3)
    assert native["decoder.project_in.main.conv.weight"] == (1024, 32, 3, 3)
    assert native["decoder.project_out.op_list.0.weight"] == (128,)
    assert native["decoder.project_out.op_list.2.conv.weight"] == (3, 128, 3, 3)


def test_extramodels_key_table():
    """The same tensors under ComfyUI_ExtraModels' names: one of each kind of its 339, each beside efficientvit's."""
    native, short = in_layout(SANA, "efficientvit"), in_layout(SANA, "extramodels")
    assert list(short.values()) == list(native.values()) and len(short) == 339
    named = dict(zip(native, short))
    for theirs, shorter in {
        "encoder.project_in.conv.weight": "encoder.project_in.weight",
        "encoder.stages.0.op_list.0.main.conv1.conv.bias": "encoder.stages.0.0.conv1.conv.bias",
        "encoder.stages.0.op_list.1.main.conv2.norm.bias": "encoder.stages.0.1.conv2.norm.bias",
        "encoder.stages.2.op_list.2.main.conv.weight": "encoder.stages.2.2.main.weight",
        "encoder.stages.3.op_list.0.context_module.main.aggreg.0.1.weight":
            "encoder.stages.3.0.context_module.aggreg.0.1.weight",
        "encoder.stages.3.op_list.0.context_module.main.qkv.conv.weight": "encoder.stages.3.0.context_module.qkv.0.weight",
        "encoder.stages.4.op_list.2.context_module.main.proj.conv.weight": "encoder.stages.4.2.context_module.proj.0.weight",
        "decoder.stages.5.op_list.0.context_module.main.proj.norm.bias": "decoder.stages.5.0.context_module.proj.1.bias",
        "decoder.stages.4.op_list.1.local_module.main.inverted_conv.conv.bias":
            "decoder.stages.4.1.local_module.inverted_conv.conv.bias",
        "decoder.stages.4.op_list.1.local_module.main.depth_conv.conv.weight":
            "decoder.stages.4.1.local_module.depth_conv.conv.weight",
        "decoder.stages.4.op_list.1.local_module.main.point_conv.norm.weight":
            "decoder.stages.4.1.local_module.point_conv.norm.weight",
        "encoder.project_out.main.op_list.0.conv.weight": "encoder.project_out.main.0.conv.weight",
        "decoder.project_in.main.conv.weight": "decoder.project_in.main.conv.weight",
        "decoder.stages.4.op_list.0.main.conv.conv.bias": "decoder.stages.4.0.main.conv.bias",
        "decoder.project_out.op_list.0.weight": "decoder.project_out.0.weight",
        "decoder.project_out.op_list.2.conv.weight": "decoder.project_out.2.conv.weight",
    }.items():
        assert named[theirs] == shorter


@pytest.mark.parametrize("name", ["tiny", "unshuffle"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip(name, layout):
    model = AutoencoderDC(ALL[name])
    canonical = model.state_dict()
    released = from_canonical(canonical, layout)
    back = to_canonical(released, layout)
    assert back.keys() == canonical.keys()
    assert all(torch.equal(back[key], t) for key, t in canonical.items())
    again = from_canonical(back, layout)
    assert list(again) == list(released)
    assert all(torch.equal(again[key], t) for key, t in released.items())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_identified_from_shapes(name, layout):
    params = ALL[name]
    shapes = in_layout(params, layout)
    identity = identify_autoencoder(shapes)
    assert identity.layout == layout
    if params.encoder_layers_per_block[0] == 0:  # no tensor has the width of a stage without layers
        params = replace(params, encoder_block_out_channels=identity.params.encoder_block_out_channels,
                         decoder_block_out_channels=identity.params.decoder_block_out_channels)
    if name == "lite":
        params = replace(params, decoder_block_out_channels=identity.params.decoder_block_out_channels)
    assert identity.params == params
    assert identity.variant == dict(sana="DC-AE f32c32 of Sana (1.0 or 1.1)", lite="DC-AE Lite f32c32 of Sana",
                                    tiny="DC-AE f8c32", unshuffle="DC-AE f8c32")[name]
    assert "assumed" in identity.evidence
    check_shapes(shapes, identity)


def test_config_tells_what_tensors_do_not():
    stated = replace(TINY, decoder_act_fns=("relu",) * 4, decoder_conv_act_fn="silu", encoder_out_shortcut=False,
                     decoder_in_shortcut=False, scaling_factor=0.25)
    config = json.loads(json.dumps(asdict(stated))) | {"_class_name": "AutoencoderDC", "decoder_act_fns": "relu"}
    identity = identify_autoencoder(shapes_of(TINY), config)
    assert identity.params == stated
    assert "assumed" not in identity.evidence
    # diffusers' configs call the strided convolution "Conv".
    assert identify_autoencoder(shapes_of(TINY), config | {"downsample_block_type": "Conv"}).params == stated


@pytest.mark.parametrize("config, named", [
    (asdict(SANA), "encoder_block_types"),
    ({"in_channels": 32, "num_layers": 28}, "in_channels"),
    (asdict(TINY) | {"encoder_layers_per_block": [0, 2, 1, 2]}, "encoder_layers_per_block"),
    (asdict(TINY) | {"upsample_block_type": "pixel_shuffle"}, "upsample_block_type"),
    ({"decoder_act_fns": ["silu"] * 3}, "decoder_act_fns"),
    ({"_class_name": "AutoencoderKL"}, "AutoencoderKL"),
])
def test_config_of_another_model_is_ignored(config, named):
    identity = identify_autoencoder(shapes_of(TINY), config)
    plain = identify_autoencoder(shapes_of(TINY))
    assert identity.params == plain.params
    [warning] = identity.warnings
    assert "ignored" in warning and named in warning


def test_prefixed_file():
    shapes = {"module." + key: shape for key, shape in in_layout(TINY, "efficientvit").items()}
    check_shapes(shapes, identify_autoencoder(shapes))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_keys_must_be_complete(layout):
    shapes = in_layout(TINY, layout)
    identity = identify_autoencoder(shapes)
    lost = next(key for key in shapes if key.endswith(("conv1.bias", "conv1.conv.bias")))
    with pytest.raises(ValueError, match="mine.pth: not a whole DC-AE f8c32: missing .*conv1.bias"):
        check_shapes({key: shape for key, shape in shapes.items() if key != lost}, identity, "mine.pth")
    extra = dict(diffusers="decoder.up_blocks.1.0.odd.weight", efficientvit="decoder.stages.1.op_list.0.odd.weight",
                 extramodels="decoder.stages.1.0.odd.weight")[layout]
    with pytest.raises(ValueError, match=extra):
        check_shapes(shapes | {extra: (1,)}, identity)
    with pytest.raises(ValueError, match=r"of another shape .*conv1.bias \(9,\), expected \(16,\)"):
        check_shapes(shapes | {lost: (9,)}, identity)


def test_refused_by_name():
    with pytest.raises(ValueError, match="flux.safetensors: not a DC-AE autoencoder: this is a FLUX transformer"):
        identify_autoencoder({"double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, filename="flux.safetensors")
    with pytest.raises(ValueError, match="a Stable Diffusion or FLUX VAE"):
        identify_autoencoder({"decoder.mid_block.attentions.0.to_q.weight": (512, 512)})
    shapes = in_layout(TINY, "efficientvit")
    norm = {"decoder.stages.1.op_list.1.main.conv2.norm.running_mean": (16,)}
    with pytest.raises(ValueError, match="batch norm.*dc-ae-f32c32-sana-1.1"):
        identify_autoencoder(shapes | norm)
    with pytest.raises(ValueError, match="half.pth: a damaged DC-AE autoencoder: its encoder or its decoder is missing"):
        identify_autoencoder({key: s for key, s in shapes.items() if key.startswith("decoder.")}, filename="half.pth")
    with pytest.raises(ValueError, match="a damaged DC-AE autoencoder: encoder.conv_out.weight is missing"):
        identify_autoencoder({key: s for key, s in shapes_of(TINY).items() if key != "encoder.conv_out.weight"})
    with pytest.raises(ValueError, match='unknown layout "nvlabs"'):
        to_canonical({}, "nvlabs")
