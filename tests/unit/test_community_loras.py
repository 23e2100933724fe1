"""Released LoRAs of the community for CogVideoX, by the names that their makers' code gives: every tensor finds its layer."""

import pytest
import torch
from torch import nn

from sanacog.cogvideo_core.config import CogVideoParams
from sanacog.cogvideo_core.transformer import CogVideoTransformer
from sanacog.host.lora_keys import ALPHA, DOWN, FILE, NOBODY, UP, USER, read

FIVE_B = dict(num_layers=42, num_attention_heads=48)
MODELS = {"2B InP": CogVideoParams(30, 30, in_channels=33, use_rotary_positional_embeddings=False),
          "5B InP": CogVideoParams(**FIVE_B, in_channels=33), "1.5 5B InP": CogVideoParams(**FIVE_B, in_channels=33, patch_size_t=2),
          "5B": CogVideoParams(**FIVE_B), "5B I2V": CogVideoParams(**FIVE_B, in_channels=32, use_learned_positional_embeddings=True)}
T5 = [f"encoder.block.{i}.layer.{part}" for i in range(24) for part in (
    *(f"0.SelfAttention.{p}" for p in "qkvo"), *(f"1.DenseReluDense.{p}" for p in ("wi_0", "wi_1", "wo")))]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def network(name):
    """(the layers of a model that a file may change, those of them that are Linear)."""
    model = CogVideoTransformer(MODELS[name], device="meta")
    return ([key.removesuffix(".weight") for key in model.state_dict() if key.endswith(".weight")],
            [layer for layer, module in model.named_modules() if isinstance(module, nn.Linear)])


def pair(rank=2):
    return torch.ones(rank, 4), torch.ones(4, rank)


@pytest.mark.parametrize("with_text", [False, True])
@pytest.mark.parametrize("name", ["2B InP", "5B InP", "1.5 5B InP"])
def test_reward_loras_of_fun(name, with_text):
    """CogVideoX-Fun-V1.1-5b-InP-HPS2.1 and the like: rank 128, alpha 64. VideoX-Fun names every Linear of the network after
    "lora_unet", the root's empty name and its own, all dots become underscores."""
    layers, linear = network(name)
    down, up = pair(128)
    file = {}
    for prefix, names in (("lora_unet", linear), ("lora_te", T5 if with_text else ())):
        for layer in names:
            stem = f"{prefix}..{layer}".replace(".", "_")
            file |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(64)}
    assert "lora_unet__transformer_blocks_0_attn1_to_out_0.lora_down.weight" in file
    found = read(file, layers, T5)
    assert not found.unmatched and not found.left_out and not found.notes
    assert set(found.model) == set(linear) and set(found.text) == (set(T5) if with_text else set())
    assert found.alphas == {FILE: len(linear) + len(found.text)}
    assert all(float(parts[ALPHA]) / parts[DOWN].shape[0] == 0.5 for parts in found.model.values())
    assert {"patch_embed.text_proj", "time_embedding.linear_1", "norm_out.linear", "proj_out"} <= set(found.model)
    assert ("patch_embed.proj" in found.model) == name.startswith("1.5")  # a convolution of 2 x 2 in the others, which is skipped


@pytest.mark.parametrize("name, rank", [("5B I2V", 256), ("5B", 128)])
def test_dimensionx_and_go_with_the_flow(name, rank):
    """orbit_left_lora_weights (exported from SAT, whose alpha is 1: told to the node) and I2V5B_final_i30000_lora_weights."""
    layers, _ = network(name)
    down, up = pair(rank)
    file = {f"transformer.transformer_blocks.{i}.attn1.{part}.lora_{side}.weight": tensor
            for i in range(42) for part in ATTENTION for side, tensor in (("A", down), ("B", up))}
    assert len(file) == 336
    for alpha, source in ((0.0, NOBODY), (1.0, USER)):
        found = read(file, layers, alpha=alpha)
        assert not found.unmatched and not found.left_out and found.alphas == {source: 168}
        parts = found.model["transformer_blocks.41.attn1.to_out.0"]
        assert parts.get(ALPHA) == (None if source == NOBODY else 1) and torch.equal(parts[UP], up)


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
@pytest.mark.parametrize("leaf", ["default.weight", "weight"])
def test_exvideo(prefix, leaf):
    """ExVideo-CogVideoX-LoRA-129f-v1: the names of DiffSynth-Studio's CogDiT, its scale 1."""
    layers, _ = network("5B")
    down, up = pair(64)
    theirs = {"attn1.to_q": "attn1.to_q", "attn1.to_k": "attn1.to_k", "attn1.to_v": "attn1.to_v", "attn1.to_out": "attn1.to_out.0",
              "ff.0": "ff.net.0.proj", "ff.2": "ff.net.2", "norm1.linear": "norm1.linear", "norm2.linear": "norm2.linear"}
    outside = {"context_embedder": "patch_embed.text_proj", "time_embedder.timestep_embedder.0": "time_embedding.linear_1",
               "time_embedder.timestep_embedder.2": "time_embedding.linear_2", "norm_out.linear": "norm_out.linear",
               "proj_out": "proj_out"}
    wanted = {f"blocks.{i}.{name}": f"transformer_blocks.{i}.{ours}" for i in range(42) for name, ours in theirs.items()} | outside
    file = {f"{prefix}{name}.lora_{side}.{leaf}": tensor for name in wanted for side, tensor in (("A", down), ("B", up))}
    found = read(file, layers)
    assert not found.unmatched and not found.left_out and found.alphas == {NOBODY: len(wanted)}
    assert set(found.model) == set(wanted.values())
