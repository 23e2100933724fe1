"""The layouts of CogVideoX files: against the equations of the SAT code, and exact there and back."""

import pytest
import torch
import torch.nn.functional as F

from sanacog.cogvideo_core.autoencoder import CogVideoVAE
from sanacog.cogvideo_core.checkpoint import (
    autoencoder_from_canonical, autoencoder_to_canonical, check_shapes, from_canonical, to_canonical)
from sanacog.cogvideo_core.config import CogVideoParams, CogVideoVAEParams, identify
from sanacog.cogvideo_core.transformer import CogVideoTransformer

HEADS, D, TIME, TEXT = 2, 128, 32, 24
SMALL = dict(num_layers=2, num_attention_heads=HEADS, time_embed_dim=TIME, text_embed_dim=TEXT, max_text_seq_length=5)


def sat_file(patch=(16, 2, 2), patch_volume=4, layers=2, extra=()):
    """A file as SAT writes it, its names spelt out by hand."""
    shapes = {
        "mixins.patch_embed.proj.weight": (D, *patch), "mixins.patch_embed.proj.bias": (D,),
        "mixins.patch_embed.text_proj.weight": (D, TEXT), "mixins.patch_embed.text_proj.bias": (D,),
        "time_embed.0.weight": (TIME, D), "time_embed.0.bias": (TIME,),
        "time_embed.2.weight": (TIME, TIME), "time_embed.2.bias": (TIME,),
        "transformer.final_layernorm.weight": (D,), "transformer.final_layernorm.bias": (D,),
        "mixins.final_layer.norm_final.weight": (D,), "mixins.final_layer.norm_final.bias": (D,),
        "mixins.final_layer.adaLN_modulation.1.weight": (2 * D, TIME), "mixins.final_layer.adaLN_modulation.1.bias": (2 * D,),
        "mixins.final_layer.linear.weight": (16 * patch_volume, D), "mixins.final_layer.linear.bias": (16 * patch_volume,),
    }
    for i in range(layers):
        for name, shape in {
            f"transformer.layers.{i}.input_layernorm": (D,),
            f"transformer.layers.{i}.attention.query_key_value": (3 * D, D),
            f"transformer.layers.{i}.attention.dense": (D, D),
            f"transformer.layers.{i}.post_attention_layernorm": (D,),
            f"transformer.layers.{i}.mlp.dense_h_to_4h": (4 * D, D),
            f"transformer.layers.{i}.mlp.dense_4h_to_h": (D, 4 * D),
            f"mixins.adaln_layer.query_layernorm_list.{i}": (64,),
            f"mixins.adaln_layer.key_layernorm_list.{i}": (64,),
            f"mixins.adaln_layer.adaLN_modulations.{i}.1": (12 * D, TIME),
        }.items():
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    shapes |= dict(extra)
    generator = torch.Generator().manual_seed(0)
    return {f"model.diffusion_model.{key}": torch.randn(shape, generator=generator) * 0.2 for key, shape in shapes.items()}


def sat_forward(file, x, timestep, context, rotate):
    """The forward pass of SAT's diffusion transformer, from the equations, on its own names. x (1, C, T, H, W)."""
    get = {key.removeprefix("model.diffusion_model."): value for key, value in file.items()}.__getitem__

    def linear(x, name):
        return F.linear(x, get(f"{name}.weight"), get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], get(f"{name}.weight"), get(f"{name}.bias"), eps=1e-6)

    frequencies = 10000 ** (-torch.arange(D // 2) / (D // 2))
    angles = timestep * frequencies
    emb = linear(F.silu(linear(torch.cat([angles.cos(), angles.sin()]), "time_embed.0")), "time_embed.2")
    text = linear(context, "mixins.patch_embed.text_proj")
    weight = get("mixins.patch_embed.proj.weight")
    video = torch.cat([F.conv2d(x[:, :, t], weight, get("mixins.patch_embed.proj.bias"), stride=2).flatten(2).transpose(1, 2)
                       for t in range(x.shape[2])], dim=1)
    length, h = text.shape[1], torch.cat([text, video], dim=1)

    for i in range(2):
        (shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp, text_shift_msa, text_scale_msa, text_gate_msa,
         text_shift_mlp, text_scale_mlp, text_gate_mlp) = linear(
            F.silu(emb), f"mixins.adaln_layer.adaLN_modulations.{i}.1").chunk(12)

        def modulated(name, shift, scale, text_shift, text_scale):
            text, video = norm(h, name).split([length, h.shape[1] - length], dim=1)
            return torch.cat([text * (1 + text_scale) + text_shift, video * (1 + scale) + shift], dim=1)

        def gated(y, gate, text_gate):
            return h + torch.cat([text_gate * y[:, :length], gate * y[:, length:]], dim=1)

        y = modulated(f"transformer.layers.{i}.input_layernorm", shift_msa, scale_msa, text_shift_msa, text_scale_msa)
        q, k, v = (t.unflatten(-1, (HEADS, 64)).transpose(1, 2)
                   for t in linear(y, f"transformer.layers.{i}.attention.query_key_value").chunk(3, dim=-1))
        q = rotate(norm(q, f"mixins.adaln_layer.query_layernorm_list.{i}"), length)
        k = rotate(norm(k, f"mixins.adaln_layer.key_layernorm_list.{i}"), length)
        y = torch.softmax(q @ k.transpose(-1, -2) / 8, dim=-1) @ v
        h = gated(linear(y.transpose(1, 2).flatten(2), f"transformer.layers.{i}.attention.dense"), gate_msa, text_gate_msa)
        y = modulated(f"transformer.layers.{i}.post_attention_layernorm", shift_mlp, scale_mlp, text_shift_mlp, text_scale_mlp)
        y = F.gelu(linear(y, f"transformer.layers.{i}.mlp.dense_h_to_4h"), approximate="tanh")
        h = gated(linear(y, f"transformer.layers.{i}.mlp.dense_4h_to_h"), gate_mlp, text_gate_mlp)

    h = norm(h, "transformer.final_layernorm")[:, length:]
    shift, scale = linear(F.silu(emb), "mixins.final_layer.adaLN_modulation.1").chunk(2)
    h = linear(norm(h, "mixins.final_layer.norm_final") * (1 + scale) + shift, "mixins.final_layer.linear")
    _, _, T, H, W = x.shape
    return torch.stack([F.fold(frame.transpose(1, 2), (H, W), 2, stride=2) for frame in h.chunk(T, dim=1)], dim=2)


def rotation(frames, height, width):
    """Rotary code as in the paper: complex numbers, channels split 16, 24, 24 between frame, row and column."""
    t, h, w = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    angles = [p.flatten()[:, None] * 10000.0 ** (-torch.arange(0, n, 2) / n) for p, n in ((t, 16), (h, 24), (w, 24))]
    turn = torch.polar(torch.ones(1), torch.cat(angles, dim=1))

    def rotate(x, length):
        video = torch.view_as_complex(x[:, :, length:].unflatten(-1, (-1, 2)).contiguous()) * turn
        return torch.cat([x[:, :, :length], torch.view_as_real(video).flatten(-2)], dim=2)
    return rotate


@torch.no_grad()
def test_sat_file_against_the_equations_of_sat():
    file = sat_file(extra={"mixins.pos_embed.freqs_cos": (3, 4), "transformer.word_embeddings.weight": (1, D)}.items())
    shapes = {key: tuple(value.shape) for key, value in file.items()}
    # A base grid as large as the video: its positions are whole numbers, which the equations use.
    params = identify(shapes, dict(sample_height=6, sample_width=8, norm_eps=1e-6, max_text_seq_length=5)).params
    model = CogVideoTransformer(params)
    model.load_state_dict(to_canonical(file, "sat"))
    generator = torch.Generator().manual_seed(1)
    x, context = torch.randn(1, 16, 3, 6, 8, generator=generator), torch.randn(1, 5, TEXT, generator=generator)
    expected = sat_forward(file, x, 321.0, context, rotation(3, 3, 4))
    result = model(x, torch.tensor([321.0]), context)
    assert (result - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("channels", [16, 32])
def test_a_1_0_model_of_todays_sat_code_is_told_from_1_5(channels):
    """It has its patches as a matrix, whose columns are channel, row and column of the patch, as 1.5 has with frames."""
    file = sat_file(patch=(channels, 2, 2))
    key = "model.diffusion_model.mixins.patch_embed.proj.weight"
    flat = file | {key: file[key].flatten(1)}
    found = identify({key: tuple(value.shape) for key, value in flat.items()})
    assert (found.params.patch_size_t, found.params.in_channels, found.params.out_channels) == (None, channels, 16)
    ours, theirs = to_canonical(flat, "sat"), to_canonical(file, "sat")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    check_shapes({key: tuple(value.shape) for key, value in flat.items()}, found)
    newer = sat_file(patch=(8 * channels,), patch_volume=8)
    found = identify({key: tuple(value.shape) for key, value in newer.items()})
    assert (found.params.patch_size_t, found.params.in_channels, found.params.out_channels) == (2, channels, 16)


VARIANTS = {
    "5B": dict(),
    "5B-I2V": dict(in_channels=32, use_learned_positional_embeddings=True, sample_height=4, sample_width=4),
    "1.5-5B-I2V": dict(in_channels=32, patch_size_t=2, ofs_embed_dim=TIME),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", ["diffusers", "sat", "comfy"])
def test_there_and_back(variant, layout):
    model = CogVideoTransformer(CogVideoParams(**SMALL | VARIANTS[variant]))
    state = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
    file = from_canonical(state, layout)
    again = to_canonical({f"model.diffusion_model.{key}": value for key, value in file.items()}, layout)
    assert again.keys() == state.keys() and all(torch.equal(again[key], state[key]) for key in state)
    twice = from_canonical(again, layout)
    assert twice.keys() == file.keys() and all(torch.equal(twice[key], file[key]) for key in file)


def test_sat_file_comes_back_as_it_was():
    file = {key.removeprefix("model.diffusion_model."): value for key, value in sat_file(layers=12).items()}
    again = from_canonical(to_canonical(file, "sat"), "sat")
    assert again.keys() == file.keys() and all(torch.equal(again[key], file[key]) for key in file)


def test_comfy_names():
    state = from_canonical(CogVideoTransformer(CogVideoParams(**SMALL | VARIANTS["1.5-5B-I2V"])).state_dict(), "comfy")
    expected = {"norm1.linear", "norm1.norm", "norm2.linear", "norm2.norm", "q", "k", "v", "norm_q", "norm_k", "attn_out",
                "ff_proj", "ff_out"}
    assert {key[9:].rpartition(".")[0] for key in state if key.startswith("blocks.1.")} == expected
    assert {key for key in state if "embed" in key and key.endswith("weight")} == {
        "patch_embed.proj.weight", "patch_embed.text_proj.weight", "time_embedding_linear_1.weight",
        "time_embedding_linear_2.weight", "ofs_embedding_linear_1.weight", "ofs_embedding_linear_2.weight"}


def test_strange_names_are_errors():
    with pytest.raises(ValueError, match="transformer.layers.0.attention.extra.weight: .* no such tensor"):
        to_canonical({"transformer.layers.0.attention.extra.weight": torch.ones(1)}, "sat")
    with pytest.raises(ValueError, match="3 parts and not all"):
        from_canonical({"transformer_blocks.0.attn1.to_q.weight": torch.ones(1, 1)}, "sat")
    with pytest.raises(ValueError, match="'onnx' is not a layout"):
        to_canonical({}, "onnx")


TINY_VAE = CogVideoVAEParams(block_out_channels=(8, 8, 16, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4)


def test_autoencoder_there_and_back():
    state = {key: torch.randn_like(value) for key, value in CogVideoVAE(TINY_VAE).state_dict().items()}
    for layout in ("diffusers", "sat"):
        file = autoencoder_from_canonical(state, layout)
        again = autoencoder_to_canonical(file | {"loss.discriminator.weight": torch.ones(1)}, layout)
        assert again.keys() == state.keys() and all(torch.equal(again[key], state[key]) for key in state)


def test_autoencoder_names_of_sat():
    state = autoencoder_from_canonical(CogVideoVAE(TINY_VAE).state_dict(), "sat")
    # The decoder's levels count from the output: the last one, which enlarges first, is number 3.
    for key in ("encoder.conv_in.conv.weight", "encoder.down.0.block.0.norm1.weight", "encoder.down.2.downsample.conv.bias",
                "encoder.down.2.block.0.nin_shortcut.weight", "encoder.mid.block_2.conv2.conv.weight", "encoder.norm_out.bias",
                "decoder.mid.block_1.norm1.conv_y.conv.weight", "decoder.up.3.block.1.norm2.norm_layer.weight",
                "decoder.up.1.block.0.nin_shortcut.weight", "decoder.up.3.upsample.conv.weight",
                "decoder.norm_out.conv_b.conv.bias", "decoder.conv_out.conv.weight"):
        assert key in state, key
    assert "decoder.up.0.upsample.conv.weight" not in state and "encoder.down.3.downsample.conv.weight" not in state
    assert state["decoder.up.3.block.0.conv1.conv.weight"].shape[:2] == (16, 16)
    assert state["decoder.up.0.block.0.conv1.conv.weight"].shape[:2] == (8, 8)
