"""Every released Sana file is named rightly from both layouts, and nothing else is taken for one."""

import functools
from dataclasses import replace

import pytest
import torch
from diffusers import SanaTransformer2DModel

from sanacog.sana_core.checkpoint import check_shapes
from sanacog.sana_core.config import SanaParams, identify
from sanacog.sana_core.transformer import SanaTransformer

from .sana_releases import ARCHITECTURES, RELEASES, SANA_16, cross_heads, diffusers_config, nvlabs_shapes

every_release = pytest.mark.parametrize("release", RELEASES, ids=lambda r: r.repository)


@functools.cache
def diffusers_shapes(architecture):
    with torch.device("meta"):
        model = SanaTransformer2DModel(**diffusers_config(architecture))
    return {key: tuple(t.shape) for key, t in model.state_dict().items()}


def expect(identity, release, layout):
    a, p = release.architecture, identity.params
    assert identity.variant == release.variant, identity.evidence
    assert identity.layout == layout
    assert (p.num_layers, p.width, p.qk_norm, p.guidance_embeds) == (a.layers, a.width, a.qk_norm, a.sprint)
    assert (p.num_cross_attention_heads, p.cross_attention_head_dim) == cross_heads(a.width)
    assert (p.in_channels, p.out_channels, p.patch_size, p.caption_channels, p.mlp_ratio) == (32, 32, 1, 2304, 2.5)
    assert (p.sample_size, p.interpolation_scale) == (release.sample_size, release.interpolation_scale)
    assert (p.clamp_fp16, p.flow_shift) == (release.clamp_fp16, release.flow_shift)
    assert p.timestep_multiplier == release.timestep_multiplier


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_counts(name):
    """Parameters and keys: ours, diffusers' and NVlabs' tables against the published figures."""
    a = ARCHITECTURES[name]
    heads, head_dim = cross_heads(a.width)
    params = SanaParams(a.layers, a.width // 32, heads, head_dim, qk_norm=a.qk_norm, guidance_embeds=a.sprint)
    ours = SanaTransformer(params, device="meta").state_dict()
    assert sum(t.numel() for t in ours.values()) == a.parameters and len(ours) == a.diffusers_keys
    assert ours.keys() == diffusers_shapes(a).keys()
    assert len(nvlabs_shapes(a)) == a.nvlabs_keys


@every_release
def test_diffusers_repository(release):
    """As it lies on disk: config.json and the repository's folder."""
    shapes = diffusers_shapes(release.architecture)
    config = diffusers_config(release.architecture, release.sample_size, release.interpolation_scale,
                              0.001 if "teacher" in release.repository else 1.0)
    path = f"/models/{release.repository}_diffusers/transformer/diffusion_pytorch_model.safetensors"
    identity = identify(shapes, config, path)
    expect(identity, release, "diffusers")
    check_shapes(shapes, identity)


@every_release
def test_diffusers_file_without_config(release):
    """A single file that somebody downloaded and named after its repository."""
    shapes = diffusers_shapes(release.architecture)
    path = rf"C:\ComfyUI\models\diffusion_models\{release.repository}.safetensors"
    expect(identify(shapes, None, path), release, "diffusers")


@every_release
def test_nvlabs_file(release):
    shapes = nvlabs_shapes(release.architecture, release.sample_size**2)
    identity = identify(shapes, None, f"checkpoints/{release.file or release.repository}.pth")
    expect(identity, release, "nvlabs")
    assert "pos_embed" in identity.evidence
    check_shapes(shapes, identity)


def test_size_of_an_nvlabs_file_needs_no_name():
    for sample_size, interpolation in ((16, None), (32, None), (64, 1.0), (128, 2.0)):
        params = identify(nvlabs_shapes(SANA_16, sample_size**2)).params
        assert (params.sample_size, params.interpolation_scale) == (sample_size, interpolation)


def test_evidence_says_what_was_assumed():
    evidence = identify(diffusers_shapes(SANA_16), None, "my finetune.safetensors").evidence
    assert evidence.count("assumed") == 2 and "2K or 4K" in evidence
    evidence = identify(diffusers_shapes(SANA_16), None, "Sana_1600M_4Kpx_BF16.safetensors").evidence
    assert "4K (file name)" in evidence and "assumed" not in evidence


def test_config_outranks_the_name_and_tensors_outrank_the_config():
    shapes = diffusers_shapes(SANA_16)
    identity = identify(shapes, diffusers_config(SANA_16, 128, 2.0), "sana_1024px.safetensors")
    assert identity.variant == "Sana 1.6B 4K" and "4K (config)" in identity.evidence
    assert identify(shapes, dict(clamp_fp16=True), "Sana_1600M_1024px_BF16.pth").params.clamp_fp16
    # Somebody else's config.json in a folder of many models.
    other = diffusers_config(replace(SANA_16, layers=28, width=1152), 64, 1.0)
    identity = identify(shapes, other, "Sana_1600M_512px.safetensors")
    assert identity.variant == "Sana 1.6B 512px" and "ignored (num_layers 28" in identity.warnings[0]


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "module.",
                                    "base_model.model.", "module.model.diffusion_model.", "module._orig_mod.", "student.net."])
def test_prefixes_of_savers(prefix):
    shapes = {prefix + key: shape for key, shape in diffusers_shapes(SANA_16).items()}
    identity = identify(shapes, None, "Sana_1600M_1024px_BF16.safetensors")
    assert identity.variant == "Sana 1.6B 1024px BF16"
    check_shapes(shapes, identity)


def test_whole_checkpoint_of_comfyui():
    shapes = {"model.diffusion_model." + key: shape for key, shape in diffusers_shapes(SANA_16).items()}
    shapes |= {"vae.decoder.conv_in.weight": (8, 8, 3, 3), "text_encoders.gemma2_2b.x": (1,)}
    check_shapes(shapes, identify(shapes))


TINY = SanaParams(3, 3, 2, 48, caption_channels=40, mlp_ratio=2.2, patch_size=2, qk_norm=True, sample_size=8)


def tiny_shapes():
    return {key: tuple(t.shape) for key, t in SanaTransformer(TINY, device="meta").state_dict().items()}


def test_own_size_comes_with_its_config():
    config = dict(num_cross_attention_heads=2, cross_attention_head_dim=48, sample_size=8, clamp_fp16=True,
                  flow_shift=2.5)
    identity = identify(tiny_shapes(), config, "tiny.safetensors")
    params = replace(TINY, clamp_fp16=True, flow_shift=2.5)
    assert replace(identity.params, mlp_ratio=2.2) == params and identity.params.hidden == TINY.hidden
    assert identity.variant == "Sana, 3 layers of width 96, 256px"
    check_shapes(tiny_shapes(), identity)


def test_hidden_width_survives_its_ratio():
    """The ratio is computed from the hidden width and back, which floating point does not always return."""
    for width in range(32, 2241, 32):
        for hidden in range(width, 3 * width, 7):
            assert SanaParams(1, width // 32, 1, 32, mlp_ratio=hidden / width).hidden == hidden


def test_own_size_without_config():
    with pytest.raises(ValueError, match=r"tiny.safetensors: .*width 96.*num_cross_attention_heads.*config.json"):
        identify(tiny_shapes(), None, "tiny.safetensors")


@pytest.mark.parametrize("change, message", [
    ({"proj_out.bias": None}, "missing proj_out.bias"),
    ({"transformer_blocks.1.ff.conv_depth.bias": None, "caption_norm.weight": (97,)},
     r"missing transformer_blocks.1.ff.conv_depth.bias; of another shape caption_norm.weight \(97,\), expected"),
    ({"extra.weight": (1, 1)}, "unexpected extra.weight"),
    ({"transformer_blocks.2.attn1.to_q.weight": (96, 95)}, r"to_q.weight \(96, 95\), expected \(96, 96\)"),
])
def test_keys_that_are_wrong_are_named(change, message):
    shapes = {key: shape for key, shape in (tiny_shapes() | change).items() if shape is not None}
    identity = identify(shapes, dict(num_cross_attention_heads=2), "tiny.safetensors")
    with pytest.raises(ValueError, match=f"tiny.safetensors: not a whole Sana.*{message}"):
        check_shapes(shapes, identity, "tiny.safetensors")


def test_keys_that_are_wrong_are_named_in_nvlabs_files():
    shapes = nvlabs_shapes(SANA_16, 1024)
    identity = identify(shapes)
    with pytest.raises(ValueError, match="x.pth: .*blocks.3.attn.surprise.weight"):
        check_shapes(shapes | {"blocks.3.attn.surprise.weight": (1,)}, identity, "x.pth")
    del shapes["blocks.3.attn.qkv.weight"]
    with pytest.raises(ValueError, match="missing transformer_blocks.3.attn1.to_k.weight"):
        check_shapes(shapes, identity)


def test_blocks_are_counted_and_not_believed():
    shapes = tiny_shapes() | {"transformer_blocks.999999999.scale_shift_table": (6, 96)}
    with pytest.raises(ValueError, match="of its blocks 0 to 999999999 only 4 are there"):
        identify(shapes, dict(num_cross_attention_heads=2))


@pytest.mark.parametrize(
    "key", ["patch_embed.proj.weight", "proj_out.weight", "transformer_blocks.0.ff.conv_depth.weight"])
def test_a_damaged_sana_is_not_called_something_else(key):
    shapes = tiny_shapes()
    del shapes[key]
    with pytest.raises(ValueError, match=f"damaged Sana transformer: {key} .*is missing"):
        identify(shapes, dict(num_cross_attention_heads=2))
