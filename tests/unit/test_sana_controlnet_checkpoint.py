"""Files of Sana's ControlNets: named rightly, exact there and back, and nothing else is taken for one."""

import functools

import pytest
import torch
from diffusers import FluxControlNetModel, SanaControlNetModel

from sanacog.sana_core import checkpoint
from sanacog.sana_core.config import SanaParams, identify
from sanacog.sana_core.controlnet import SanaControlNet
from sanacog.sana_core.controlnet_checkpoint import check_shapes, from_canonical, identify_controlnet, to_canonical
from sanacog.sana_core.transformer import SanaTransformer

from .sana_releases import SANA_06, SANA_16, cross_heads, diffusers_config, nvlabs_control_shapes, nvlabs_shapes

RELEASES = {  # file -> base, clip, parameters of diffusers' model, keys of NVlabs' file without training's left-overs
    "Sana_600M_1024px_ControlNet_HED": (SANA_06, True, 168_765_696, 557),
    "Sana_1600M_1024px_BF16_ControlNet_HED": (SANA_16, False, 631_576_960, 437)}
every_release = pytest.mark.parametrize("name", RELEASES)
PARAMS = SanaParams(4, 2, 2, 32, caption_channels=40, sample_size=8)


def control_config(a, layers=7):
    config = diffusers_config(a)
    for field in ("guidance_embeds", "guidance_embeds_scale", "qk_norm", "timestep_scale"):
        del config[field]
    return config | {"num_layers": layers}


@functools.cache
def diffusers_shapes(a, layers=7):
    with torch.device("meta"):
        model = SanaControlNetModel(**control_config(a, layers))
    return {key: tuple(t.shape) for key, t in model.state_dict().items()}


@functools.cache
def nets(wiring="native", layers=3):
    """Random weights of a ControlNet and of its base, which share the embedders."""
    generator = torch.Generator().manual_seed(0)
    base = SanaTransformer(PARAMS, device="meta").state_dict()
    net = SanaControlNet(PARAMS, layers, wiring, device="meta").state_dict()
    base = {key: torch.randn(t.shape, generator=generator) for key, t in base.items()}
    shared = {key: t for key, t in base.items() if not key.startswith("transformer_blocks.")}
    net = {key: shared.get(key, torch.randn(t.shape, generator=generator)) for key, t in net.items()}
    return net, base


def same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@every_release
def test_released_files(name):
    a, clamp, parameters, keys = RELEASES[name]
    shapes = nvlabs_control_shapes(a)
    assert len(shapes) == keys
    shapes |= {"pos_embed": (1, 1024, a.width), "y_embedder.y_embedding": (300, 2304)}
    found = identify_controlnet(shapes, None, f"checkpoints/{name}.pth")
    check_shapes(shapes, found)
    assert (found.layout, found.wiring) == ("nvlabs", "native")
    p = found.params
    assert (p.num_layers, p.width) == (7, a.width)
    assert (p.num_cross_attention_heads, p.cross_attention_head_dim) == cross_heads(a.width)
    assert p.clamp_fp16 is clamp and p.interpolation_scale is None and not p.qk_norm
    network = SanaControlNet(p, p.num_layers, device="meta").state_dict()
    assert len(network) == 162 and sum(t.numel() for t in network.values()) == parameters


@every_release
@pytest.mark.parametrize("layers", [7, 1, 12])
def test_diffusers_files(name, layers):
    a, clamp, *_ = RELEASES[name]
    shapes = diffusers_shapes(a, layers)
    for config in (control_config(a, layers), None):
        found = identify_controlnet(shapes, config, f"{name}_diffusers/diffusion_pytorch_model.safetensors")
        check_shapes(shapes, found)
        assert (found.layout, found.wiring, found.params.num_layers) == ("diffusers", "diffusers", layers)
        assert found.params.width == a.width and found.params.clamp_fp16 is clamp
        assert f"{layers} copied blocks" in found.variant
    if layers == 7:
        assert len(shapes) == 162
    assert identify_controlnet(shapes, {"wiring": "native"}).wiring == "native"
    assert identify_controlnet(shapes, {"wiring": "native"}, wiring="diffusers").wiring == "diffusers"


def test_there_and_back():
    net, base = nets()
    same(to_canonical(from_canonical(net, "diffusers"), "diffusers"), net)
    file = from_canonical(net, "nvlabs", base)
    same(to_canonical(file, "nvlabs"), net)
    same(checkpoint.to_canonical(file, "nvlabs"), base)  # Load Sana Model reads the same file
    same(from_canonical(to_canonical(file, "nvlabs"), "nvlabs", checkpoint.to_canonical(file, "nvlabs")), file)
    with pytest.raises(ValueError, match="holds its base"):
        from_canonical(net, "nvlabs")


def test_where_nvlabs_tensors_go():
    """The names that diffusers' converter gives, spelled out."""
    net, base = nets()
    file = from_canonical(net, "nvlabs", base)
    assert torch.equal(file["controlnet.0.before_proj.weight"], net["input_block.weight"])
    assert torch.equal(file["controlnet.2.after_proj.bias"], net["controlnet_blocks.2.bias"])
    rows = [net[f"transformer_blocks.1.attn1.to_{part}.weight"] for part in "qkv"]
    assert torch.equal(file["controlnet.1.copied_block.attn.qkv.weight"], torch.cat(rows))
    assert torch.equal(file["blocks.1.attn.qkv.weight"][:64], base["transformer_blocks.1.attn1.to_q.weight"])
    assert "controlnet.1.before_proj.weight" not in file and "controlnet.3.after_proj.weight" not in file


@every_release
def test_a_combined_file_is_its_base_too(name):
    a = RELEASES[name][0]
    shapes = nvlabs_control_shapes(a)
    found = identify(shapes, None, f"{name}.pth")
    assert found.params.num_layers == a.layers and "ControlNet in the same file is left out" in found.evidence
    checkpoint.check_shapes(shapes, found)
    assert "ControlNet" not in identify(nvlabs_shapes(a)).evidence


def flux():
    with torch.device("meta"):
        model = FluxControlNetModel(num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=8,
                                    axes_dims_rope=(2, 2, 4), joint_attention_dim=16, pooled_projection_dim=16)
    return {key: tuple(t.shape) for key, t in model.state_dict().items()}


def test_other_files_are_refused_by_name():
    base = nvlabs_shapes(SANA_16)
    alone = {key: shape for key, shape in nvlabs_control_shapes(SANA_16).items() if key.startswith("controlnet.")}
    for shapes, said in ((base, "a Sana transformer: use Load Sana Model"), (flux(), "ControlNet of another model family"),
                         ({"controlnet_cond_embedding.conv_in.weight": (1,)}, "ControlNet of another model family"),
                         ({"a.lora_A.weight": (1,)}, "a LoRA"), ({"a": (1,)}, "does not know"), (alone, "without its base")):
        with pytest.raises(ValueError, match=f"^x.pth: .*{said}"):
            identify_controlnet(shapes, None, "x.pth")
    with pytest.raises(ValueError, match="a Sana ControlNet: use Load Sana ControlNet"):
        identify(diffusers_shapes(SANA_16))
    with pytest.raises(ValueError, match="a Sana ControlNet: use Load Sana ControlNet"):
        identify(alone)
    with pytest.raises(ValueError, match="choose one of auto, native, diffusers"):
        identify_controlnet(diffusers_shapes(SANA_16), wiring="hed")


def test_damaged_files_name_the_keys():
    shapes = nvlabs_control_shapes(SANA_06)
    found = identify_controlnet(shapes)
    del shapes["controlnet.3.after_proj.bias"]
    shapes["controlnet.2.gate"] = (1,)
    with pytest.raises(ValueError, match=r"a.pth: .*missing controlnet_blocks.3.bias; unexpected controlnet.2.gate"):
        check_shapes(shapes, found, "a.pth")
    shapes = dict(diffusers_shapes(SANA_06), **{"input_block.weight": (4, 4)})
    with pytest.raises(ValueError, match=r"of another shape input_block.weight \(4, 4\), expected \(1152, 1152\)"):
        check_shapes(shapes, identify_controlnet(shapes))
    shapes = {key: shape for key, shape in diffusers_shapes(SANA_06).items() if not key.startswith("patch_embed.")}
    with pytest.raises(ValueError, match="patch_embed.proj.weight"):
        check_shapes(shapes, identify_controlnet(shapes))
