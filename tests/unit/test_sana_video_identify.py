"""Every released SANA-Video file is named rightly, goes into our layout and back, and nothing else is taken for one."""

import functools

import pytest
import torch
from diffusers import SanaVideoTransformer3DModel

from sanacog.sana_core.config import identify as identify_picture
from sanacog.sana_core.video_checkpoint import check_shapes, from_canonical, network, to_canonical
from sanacog.sana_core.video_config import SanaVideo2Params, SanaVideoParams, identify

SIZES = {"480p": dict(in_channels=16, out_channels=16, patch_size=(1, 2, 2)),
         "720p": dict(in_channels=128, out_channels=128, patch_size=(1, 1, 1))}
PARAMETERS = {"480p": 2_056_862_144, "720p": 2_057_148_928}  # published


@functools.cache
def diffusers_shapes(size):
    with torch.device("meta"):
        model = SanaVideoTransformer3DModel(mlp_ratio=3.0, **SIZES[size])
    return {key: tuple(t.shape) for key, t in model.state_dict().items()}


def nvlabs_shapes(size):
    """From what the authors' classes make, not from our table."""
    channels, patch = (16, 2) if size == "480p" else (128, 1)
    D, hidden, text = 2240, 6720, 2304
    shapes = outside(D, channels, patch, text)
    for i in range(20):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in {
            "scale_shift_table": (6, D), "attn.qkv.weight": (3 * D, D), "attn.q_norm.weight": (D,), "attn.k_norm.weight": (D,),
            "attn.proj.weight": (D, D), "attn.proj.bias": (D,), **cross(D),
            "mlp.inverted_conv.conv.weight": (2 * hidden, D, 1, 1), "mlp.inverted_conv.conv.bias": (2 * hidden,),
            "mlp.depth_conv.conv.weight": (2 * hidden, 1, 3, 3), "mlp.depth_conv.conv.bias": (2 * hidden,),
            "mlp.point_conv.conv.weight": (D, hidden, 1, 1), "mlp.t_conv.weight": (D, D, 3, 1)}.items()}
    return shapes


def outside(D, channels, patch, text):
    return {"x_embedder.proj.weight": (D, channels, 1, patch, patch), "x_embedder.proj.bias": (D,),
            "t_embedder.mlp.0.weight": (D, 256), "t_embedder.mlp.0.bias": (D,), "t_embedder.mlp.2.weight": (D, D),
            "t_embedder.mlp.2.bias": (D,), "t_block.1.weight": (6 * D, D), "t_block.1.bias": (6 * D,),
            "y_embedder.y_embedding": (300, text), "y_embedder.y_proj.fc1.weight": (D, text), "y_embedder.y_proj.fc1.bias": (D,),
            "y_embedder.y_proj.fc2.weight": (D, D), "y_embedder.y_proj.fc2.bias": (D,), "attention_y_norm.weight": (D,),
            "final_layer.linear.weight": (patch * patch * channels, D), "final_layer.linear.bias": (patch * patch * channels,),
            "final_layer.scale_shift_table": (2, D), "pos_embed": (1, 225, D)}


def cross(D):
    return {"cross_attn.q_linear.weight": (D, D), "cross_attn.q_linear.bias": (D,), "cross_attn.kv_linear.weight": (2 * D, D),
            "cross_attn.kv_linear.bias": (2 * D,), "cross_attn.proj.weight": (D, D), "cross_attn.proj.bias": (D,),
            "cross_attn.q_norm.weight": (D,), "cross_attn.k_norm.weight": (D,)}


def second_shapes(layers, D):
    anchors = {4 * i + 3 for i in range(layers // 4)}
    shapes = outside(D, 128, 1, 2304) | {f"attn_res.{name}_proj.weight": (1, D) for name in ("attn", "mlp", "final")}
    for i in range(layers):
        block = {"scale_shift_table": (6, D), "attn.qkv.weight": (3 * D, D), "attn.q_norm.weight": (D,), "attn.k_norm.weight": (D,),
                 "attn.proj.weight": (D, D), "attn.proj.bias": (D,), "attn.output_gate.weight": (D, D), "attn.output_gate.bias": (D,),
                 **cross(D), "mlp.gate_proj.weight": (4 * D, D), "mlp.gate_proj.bias": (4 * D,), "mlp.up_proj.weight": (4 * D, D),
                 "mlp.up_proj.bias": (4 * D,), "mlp.down_proj.weight": (D, 4 * D), "mlp.down_proj.bias": (D,)}
        if i not in anchors:
            block |= {"attn.beta_proj.weight": (D // 128, D), "attn.beta_proj.bias": (D // 128,), "attn.o_norm.weight": (128,)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes


def count(identity):
    return sum(t.numel() for t in network(identity.params, device="meta").state_dict().values())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", ["diffusers", "nvlabs"])
def test_first_generation(size, layout):
    shapes = diffusers_shapes(size) if layout == "diffusers" else nvlabs_shapes(size)
    found = identify(shapes, None, f"SANA-Video_2B_{size}/checkpoints/SANA_Video_2B_{size}.pth")
    assert (found.variant, found.layout) == (f"SANA-Video 2B {size}", layout)
    p = found.params
    assert (p.num_layers, p.num_attention_heads, p.attention_head_dim, p.mlp_ratio) == (20, 20, 112, 3.0)
    assert (p.num_cross_attention_heads, p.cross_attention_head_dim) == (20, 112)
    assert (p.in_channels, p.patch_size, p.latents) == ((16, 2, "wan") if size == "480p" else (128, 1, "ltx2"))
    assert (p.flow_shift, p.causal) == (8.0, False)
    assert count(found) == PARAMETERS[size] and len(network(p, device="meta").state_dict()) == 496
    check_shapes(shapes, found)


def test_diffusers_config():
    config = {"_class_name": "SanaVideoTransformer3DModel", "num_layers": 20, "num_attention_heads": 20, "attention_head_dim": 112,
              "num_cross_attention_heads": 20, "cross_attention_head_dim": 112, "cross_attention_dim": 2240, "mlp_ratio": 3.0,
              "patch_size": [1, 2, 2], "in_channels": 16, "out_channels": 16, "caption_channels": 2304,
              "qk_norm": "rms_norm_across_heads", "guidance_embeds": False}
    found = identify(diffusers_shapes("480p"), config, "SANA-Video_2B_480p_diffusers/transformer/diffusion_pytorch_model.safetensors")
    assert found.variant == "SANA-Video 2B 480p" and not found.warnings
    wrong = identify(diffusers_shapes("480p"), config | {"num_layers": 30}, "transformer/model.safetensors")
    assert wrong.params == found.params and "num_layers 30, tensors 20" in wrong.warnings[0]


@pytest.mark.parametrize("name", [
    "SANA-Video_2B_480p_LongLive/checkpoints/SANA_Video_2B_480p_LongLive.pth",
    "LongSANA_2B_480p_ode/checkpoints/LongSANA_2B_480p_ode.pt",
    "LongSANA_2B_480p_self_forcing/checkpoints/LongSANA_2B_480p_self_forcing.pt",
    "long_sana_bf16.safetensors"])
def test_long_sana(name):
    found = identify(nvlabs_shapes("480p"), None, name)
    assert found.variant == "LongSANA 2B 480p" and found.params.causal and "file name" in found.evidence


@pytest.mark.parametrize("layers, width, parameters, variant", [(32, 2560, 4_466_980_960, "SANA-Video 2.0 5B"),
                                                                (40, 4096, 14_246_716_224, "SANA-Video 2.0 14B")])
def test_second_generation(layers, width, parameters, variant):
    shapes = second_shapes(layers, width)
    found = identify(shapes, None, "SANA-Video_2.0_5B_720p/checkpoints/SANA_Video_2.0_5B_720p.pth")
    assert (found.variant, found.layout, found.params.distilled) == (variant, "nvlabs", False)
    p = found.params
    assert p.softmax_layers == tuple(range(3, layers, 4)) and (p.linear_head_dim, p.softmax_head_dim) == (128, 256)
    assert (p.cross_attention_head_dim, p.latents, p.flow_shift, p.depth_group) == (128, "ltx2", 12.0, 8)
    assert count(found) == parameters  # published
    check_shapes(shapes, found)
    four = identify(shapes, None, "SANA-Video_2.0_5B_720p_4step/checkpoints/SANA_Video_2.0_5B_720p_4step.pth")
    assert four.variant == f"{variant} 4-step" and four.params.distilled


@pytest.mark.parametrize("shapes", [nvlabs_shapes("480p"), second_shapes(8, 2560)], ids=["first", "2.0"])
def test_there_and_back(shapes):
    """NVlabs' tensors -> canonical -> NVlabs', to the bit; and so our own."""
    generator = torch.Generator().manual_seed(0)
    left_over = {"y_embedder.y_embedding", "pos_embed"}
    small = {key: torch.randn([min(n, 6) if key not in left_over else 2 for n in shape], generator=generator)
             for key, shape in shapes.items() if "blocks." not in key or ".0." in key or ".3." in key}
    canonical = to_canonical(small, "nvlabs")
    back = from_canonical(canonical, "nvlabs")
    assert back.keys() == small.keys() - left_over
    assert all(torch.equal(back[key], small[key]) for key in back)
    again = to_canonical(from_canonical(canonical, "diffusers"), "diffusers")
    assert again.keys() == canonical.keys() and all(torch.equal(again[key], canonical[key]) for key in again)


def test_generator_of_a_trainer():
    """LongSANA's files keep the network under model. in a trainer's dictionary; other models' files are refused by name."""
    shapes = {f"model.{key}": shape for key, shape in nvlabs_shapes("480p").items()}
    assert identify(shapes, None, "LongSANA.pt").params.causal
    with pytest.raises(ValueError, match="use Load SANA-Video Model"):
        identify_picture(nvlabs_shapes("720p"))
    with pytest.raises(ValueError, match="not a SANA-Video transformer: this is a Sana transformer"):
        identify({"transformer_blocks.0.ff.conv_inverted.weight": (4, 2), "caption_norm.weight": (2,), "patch_embed.proj.weight": (2,)})


def test_damaged():
    shapes = nvlabs_shapes("480p")
    with pytest.raises(ValueError, match="of its blocks 0 to 19 only 19"):
        identify({key: shape for key, shape in shapes.items() if not key.startswith("blocks.7.")}, None, "x.pth")
    with pytest.raises(ValueError, match="x.pth"):
        check_shapes({key: shape for key, shape in shapes.items() if key != "blocks.7.mlp.t_conv.weight"},
                     identify(shapes, None, "x.pth"), "x.pth")
    with pytest.raises(ValueError, match="width 1000, which was never released"):
        identify({key: tuple(1000 if n == 2240 else n for n in shape) for key, shape in shapes.items()})


def test_a_saved_config_tells_all():
    """What a model saved from ComfyUI states, where no tensor does."""
    first = SanaVideoParams(2, 3, 2, 48, attention_head_dim=32, caption_channels=48, latents="cogvideox", causal=True, flow_shift=3.0)
    second = SanaVideo2Params(4, 96, 3, (1, 3), linear_head_dim=24, softmax_head_dim=48, in_channels=16, out_channels=16,
                              caption_channels=48, mlp_ratio=2.0, depth_group=2, latents="cogvideox", distilled=True)
    for params in (first, second):
        import dataclasses
        import json

        config = json.loads(json.dumps(dataclasses.asdict(params)))
        shapes = {key: tuple(t.shape) for key, t in network(params, device="meta").state_dict().items()}
        assert identify(shapes, config).params == params
