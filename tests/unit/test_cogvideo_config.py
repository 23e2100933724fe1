"""Every released CogVideoX, by the names and shapes of its file alone, in each layout; nothing is allocated."""

import pytest
import torch

from sanacog.cogvideo_core.checkpoint import (
    autoencoder_from_canonical, autoencoder_to_canonical, from_canonical, to_canonical)
from sanacog.cogvideo_core.autoencoder import CogVideoVAE
from sanacog.cogvideo_core.config import CogVideoParams, CogVideoVAEParams, identify, identify_autoencoder
from sanacog.cogvideo_core.transformer import CogVideoTransformer

SMALL_SIZE, LARGE_SIZE = dict(num_layers=30, num_attention_heads=30), dict(num_layers=42, num_attention_heads=48)
TWO_B = SMALL_SIZE | dict(use_rotary_positional_embeddings=False, scaling_factor=1.15258426, snr_shift_scale=3.0)
# variant: (params, tensors in the file, billions of parameters). The counts are those of the released files.
VARIANTS = {
    "CogVideoX 2B": (TWO_B, 736, 1.694),
    "CogVideoX 5B": (LARGE_SIZE, 1024, 5.570),
    "CogVideoX 5B I2V": (
        LARGE_SIZE | dict(in_channels=32, use_learned_positional_embeddings=True, conditioning="image"), 1025, 5.625),
    "CogVideoX 1.5 5B": (LARGE_SIZE | dict(patch_size_t=2), 1024, 5.571),
    "CogVideoX 1.5 5B I2V": (
        LARGE_SIZE | dict(patch_size_t=2, in_channels=32, ofs_embed_dim=512, conditioning="image"), 1028, 5.572),
    "CogVideoX-Fun 2B InP": (TWO_B | dict(in_channels=33, conditioning="inpaint", resize_positions=True), 736, 1.694),
    "CogVideoX-Fun 5B InP": (LARGE_SIZE | dict(in_channels=33, conditioning="inpaint"), 1024, 5.570),
    "CogVideoX-Fun 2B Control": (TWO_B | dict(in_channels=32, conditioning="control", resize_positions=True), 736, 1.694),
    "CogVideoX-Fun 5B Control": (LARGE_SIZE | dict(in_channels=32, conditioning="control"), 1024, 5.570),
    "CogVideoX-Fun 1.5 5B InP": (LARGE_SIZE | dict(patch_size_t=2, in_channels=33, conditioning="inpaint"), 1024, 5.571),
    "CogVideoX 1.5 5B VOID": (LARGE_SIZE | dict(patch_size_t=2, in_channels=48, conditioning="void"), 1024, 5.572),
}
# As the host's files differ: the patch projection's shape in the released ones.
PROJECTIONS = {
    "CogVideoX 2B": (1920, 16, 2, 2), "CogVideoX 5B I2V": (3072, 32, 2, 2), "CogVideoX 1.5 5B": (3072, 128),
    "CogVideoX 1.5 5B I2V": (3072, 256), "CogVideoX-Fun 1.5 5B InP": (3072, 264), "CogVideoX 1.5 5B VOID": (3072, 384),
}


def meta_state(variant):
    return CogVideoTransformer(CogVideoParams(**VARIANTS[variant][0]), device="meta").state_dict()


def shapes(state):
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_from_every_layout(variant):
    params, tensors, billions = VARIANTS[variant]
    state = meta_state(variant)
    assert len(state) == tensors
    assert sum(value.numel() for value in state.values()) / 1e9 == pytest.approx(billions, abs=1e-3)
    if variant in PROJECTIONS:
        assert state["patch_embed.proj.weight"].shape == PROJECTIONS[variant]
    for layout in ("diffusers", "sat", "comfy"):
        file = from_canonical(state, layout)
        if layout == "sat":
            assert file["transformer.layers.0.attention.query_key_value.weight"].shape[0] == 3 * state["norm_final.weight"].shape[0]
            file["mixins.pos_embed.freqs_sin"] = torch.empty(8, device="meta")
            if variant == "CogVideoX 2B":
                file["mixins.pos_embed.pos_embedding"] = torch.empty(1, 17776, 1920, device="meta")
        file = {f"model.diffusion_model.{key}": value for key, value in file.items()}
        found = identify(shapes(file))
        assert (found.variant, found.layout) == (variant, layout), found.evidence
        assert found.params == CogVideoParams(**params)
        assert shapes(to_canonical(file, layout)) == shapes(state)


def test_shapes_are_those_of_diffusers():
    from diffusers import CogVideoXTransformer3DModel

    for variant in ("CogVideoX 2B", "CogVideoX 5B I2V", "CogVideoX 1.5 5B I2V"):
        params = CogVideoParams(**VARIANTS[variant][0])
        known = {name: getattr(params, name) for name in (
            "num_layers", "num_attention_heads", "in_channels", "patch_size_t", "ofs_embed_dim",
            "use_rotary_positional_embeddings", "use_learned_positional_embeddings")}
        known["num_layers"] = 1
        with torch.device("meta"):
            theirs = CogVideoXTransformer3DModel(**known)
        ours = CogVideoTransformer(CogVideoParams(**VARIANTS[variant][0] | dict(num_layers=1)), device="meta")
        assert shapes(ours.state_dict()) == shapes(theirs.state_dict())


# 32 input channels: what tells the variants apart, in the order of its weight.
@pytest.mark.parametrize("variant, filename, config, conditioning", [
    ("CogVideoX-Fun 5B Control", "CogVideoX-Fun-V1.1-5b-Pose/transformer/model.safetensors", None, "control"),
    ("CogVideoX-Fun 5B Control", "some-i2v-finetune.safetensors", None, "image"),
    ("CogVideoX-Fun 5B Control", "CogVideoX_5b_Interpolation_GGUF_Q4_0.safetensors", None, "image"),
    ("CogVideoX-Fun 5B Control", "some-i2v-finetune.safetensors", {"conditioning": "control"}, "control"),
    ("CogVideoX-Fun 2B Control", "NimVideo/cogvideox-2b-img2vid/x.safetensors", None, "repeated_image"),
    ("CogVideoX 5B I2V", "CogVideoX-Fun-Control.safetensors", None, "image"),
    ("CogVideoX 1.5 5B I2V", "CogVideoX-Fun-Control.safetensors", {"conditioning": "control"}, "image"),
])
def test_what_32_channels_mean(variant, filename, config, conditioning):
    found = identify(shapes(meta_state(variant)), config, filename)
    assert found.params.conditioning == conditioning
    assert f"conditioning: {conditioning}" in found.evidence


def test_position_code_of_an_own_size_comes_from_its_config():
    state = CogVideoTransformer(CogVideoParams(num_layers=1, num_attention_heads=2), device="meta").state_dict()
    config = {"use_rotary_positional_embeddings": False, "sample_height": 16, "sample_width": 16}
    found = identify(shapes(state), config)
    assert not found.params.use_rotary_positional_embeddings and found.params.base_grid == (8, 8)
    assert found.variant == "CogVideoX 1 layers of 128" and found.params.snr_shift_scale == 3.0
    assert identify(shapes(state)).params.use_rotary_positional_embeddings


def test_image_latents_of_15_are_not_scaled():
    assert CogVideoParams(**VARIANTS["CogVideoX 5B I2V"][0]).condition_scale == 0.7
    assert CogVideoParams(**VARIANTS["CogVideoX 1.5 5B I2V"][0]).condition_scale == 1.0


@pytest.mark.parametrize("keys, name", [
    (["transformer.transformer_blocks.0.attn1.to_q.lora_A.weight"], "a LoRA"),
    (["lora_unet__transformer_blocks_0_attn1_to_q.lora_down.weight"], "a LoRA"),
    (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "a FLUX transformer"),
    (["encoder.block.0.layer.0.SelfAttention.q.weight"], "a T5 text encoder"),
    (["decoder.up_blocks.0.resnets.0.norm1.conv_y.conv.weight"], "a CogVideoX VAE"),
    (["head.modulation", "blocks.0.cross_attn.norm_k.weight"], "a Wan transformer"),
    (["transformer_blocks.0.ff.conv_inverted.conv.weight", "caption_norm.weight"], "a Sana transformer"),
    (["something.weight"], "something.weight"),
    ([], "an empty file"),
])
def test_other_files_are_named(keys, name):
    with pytest.raises(ValueError, match="this.safetensors: this is no CogVideoX transformer") as error:
        identify({key: (1, 1) for key in keys}, filename="this.safetensors")
    assert name in str(error.value)


def test_contradictions_are_named():
    state = shapes(meta_state("CogVideoX 5B"))
    with pytest.raises(ValueError, match="20 input channels; known are 16"):
        identify(state | {"patch_embed.proj.weight": (3072, 20, 2, 2)})
    with pytest.raises(ValueError, match="do not fit together"):
        identify(state | {"proj_out.weight": (63, 3072)})
    with pytest.raises(ValueError, match="only 41 are there"):
        identify({key: value for key, value in state.items() if ".7." not in key})
    with pytest.raises(ValueError, match="has 100 rows"):
        identify(shapes(meta_state("CogVideoX 5B I2V")) | {"patch_embed.pos_embedding": (1, 100, 3072)})


def test_autoencoder():
    state = CogVideoVAE(device="meta").state_dict()
    assert len(state) == 436 and sum(value.numel() for value in state.values()) / 1e6 == pytest.approx(215.58, abs=0.01)
    for layout in ("diffusers", "sat"):
        file = autoencoder_from_canonical(state, layout) | {"loss.logvar": torch.empty(1, device="meta")}
        found = identify_autoencoder(shapes(file))
        assert (found.variant, found.layout, found.params) == ("CogVideoX VAE", layout, CogVideoVAEParams())
        assert shapes(autoencoder_to_canonical(file, layout)) == shapes(state)
        prefixed = {f"first_stage_model.{key}": value for key, value in file.items()}
        assert identify_autoencoder(shapes(prefixed)).layout == layout


def test_small_autoencoder_takes_its_groups_from_the_config():
    params = CogVideoVAEParams(block_out_channels=(8, 8, 8, 16), layers_per_block=1, norm_num_groups=4)
    state = shapes(CogVideoVAE(params, device="meta").state_dict())
    assert identify_autoencoder(state, {"norm_num_groups": 4}).params == params
    with pytest.raises(ValueError, match="32 norm groups do not divide"):
        identify_autoencoder(state)
    with pytest.raises(ValueError, match="no CogVideoX VAE, it looks like a Wan VAE"):
        identify_autoencoder({"decoder.middle.0.residual.0.gamma": (1,)})


@pytest.mark.parametrize("keys, what", [
    ("local_facial_extractor.latents perceiver_cross_attention.0.to_q.weight patch_embed.text_proj.weight", "ConsisID, .*does not run"),
    ("transformer_blocks_copy.0.attn1.to_q.weight combine_linears.0.weight patch_embed.text_proj.weight", "Diffusion as Shader, .*does not run"),
    ("0.flow_gamma_spatial.weight 0.flow_gamma_temporal.weight 0.flow_beta_spatial.weight 0.flow_cond_norm.weight", "Tora's motion fuser: it goes into CogVideoX Tora"),
    ("conv_in.weight body.0.block1.weight body.0.block2.weight body.0.bn1.running_mean",
     "Tora's trajectory extractor: it goes into CogVideoX Tora")])
def test_files_of_the_community_that_are_no_transformer_of_ours(keys, what):
    """Keys of ConsisID (diffusers), Diffusion as Shader, and Tora's two parts as ComfyUI-CogVideoXWrapper's files have them."""
    with pytest.raises(ValueError, match=f"x.safetensors: .*looks like {what}"):
        identify(dict.fromkeys(keys.split(), (4, 4)), None, "x.safetensors")
