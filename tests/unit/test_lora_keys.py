"""LoRA files of every naming end at the same layers."""

import json

import pytest
import torch

from sanacog.host.lora_keys import ALPHA, DORA, DOWN, METADATA, UP, read

BLOCK = "transformer_blocks.3."
SANA = [BLOCK + name for name in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k",
                                  "attn2.to_v", "ff.conv_inverted")]
VIDEO = [BLOCK + name for name in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj")]
TEXT = ["model.layers.1.self_attn.q_proj"]
GEMMA = "layers.1.self_attn.q_proj"
T = torch.ones(4, 4)


@pytest.mark.parametrize("stem, target", [
    (BLOCK + "attn1.to_q", "attn1.to_q"),
    ("transformer." + BLOCK + "attn2.to_k", "attn2.to_k"),
    ("base_model.model." + BLOCK + "attn1.to_out.0", "attn1.to_out.0"),
    ("base_model.model.transformer." + BLOCK + "attn1.to_v", "attn1.to_v"),
    ("diffusion_model." + BLOCK + "ff.conv_inverted", "ff.conv_inverted"),
    ("lora_unet_transformer_blocks_3_attn1_to_out_0", "attn1.to_out.0"),
    ("lora_unet__transformer_blocks_3_attn1_to_q", "attn1.to_q"),
    ("lycoris_transformer_blocks_3_attn2_to_v", "attn2.to_v"),
    ("blocks.3.cross_attn.q_linear", "attn2.to_q"),
    ("diffusion_model.blocks.3.mlp.inverted_conv.conv", "ff.conv_inverted"),
])
@pytest.mark.parametrize("down, up", [(".lora_A.weight", ".lora_B.weight"), (".lora_A.default.weight", ".lora_B.default.weight"),
                                      (".lora_down.weight", ".lora_up.weight"), (".lora.down.weight", ".lora.up.weight")])
def test_names(stem, target, down, up):
    found = read({stem + down: T, stem + up: 2 * T}, SANA)
    assert not found.unmatched and list(found.model) == [BLOCK + target]
    assert torch.equal(found.model[BLOCK + target][DOWN], T) and torch.equal(found.model[BLOCK + target][UP], 2 * T)


@pytest.mark.parametrize("stem, targets", [("blocks.3.attn.qkv", ("attn1.to_q", "attn1.to_k", "attn1.to_v")),
                                           ("blocks.3.cross_attn.kv_linear", ("attn2.to_k", "attn2.to_v"))])
def test_a_fused_projection_is_cut_by_rows(stem, targets):
    up = torch.arange(6 * 2).reshape(6, 2).float()
    found = read({stem + ".lora_A.weight": T[:2], stem + ".lora_B.weight": up, stem + ".alpha": torch.tensor(8.0)}, SANA)
    parts = [found.model[BLOCK + target] for target in targets]
    assert torch.equal(torch.cat([p[UP] for p in parts]), up)
    assert all(torch.equal(p[DOWN], T[:2]) and p[ALPHA] == 8 for p in parts)


def test_sat():
    stem = "model.diffusion_model.transformer.layers.3.attention."
    file = {f"{stem}query_key_value.matrix_{side}.{i}": T * (i + 1) for side in "AB" for i in range(3)}
    file |= {f"{stem}dense.matrix_{side}.0": T for side in "AB"}
    found = read(file, VIDEO)
    assert not found.unmatched and list(found.model) == [BLOCK + f"attn1.to_{n}" for n in ("q", "k", "v", "out.0")]
    assert torch.equal(found.model[BLOCK + "attn1.to_v"][UP], 3 * T)
    assert all(parts[ALPHA] == 1 for parts in found.model.values())  # SAT's scale is 1 / rank


def test_comfyui_core_names():
    found = read({"diffusion_model.blocks.3.q.lora_A.weight": T, "diffusion_model.blocks.3.ff_proj.lora_A.weight": T}, VIDEO)
    assert list(found.model) == [BLOCK + "attn1.to_q", BLOCK + "ff.net.0.proj"]


@pytest.mark.parametrize("stem", ["text_encoder.model." + GEMMA, "text_encoder." + GEMMA, "lora_te_model_layers_1_self_attn_q_proj",
                                  "lora_te1_model_layers_1_self_attn_q_proj"])
def test_text_encoder(stem):
    found = read({stem + ".lora_A.weight": T}, SANA, TEXT)
    assert list(found.text) == TEXT and not found.model


def test_alpha_of_the_file_of_its_metadata_and_of_the_user():
    def alpha(metadata=None, user=0.0, **more):
        found = read({"transformer." + SANA[0] + ".lora_A.weight": T, **more}, SANA, (), metadata, user)
        return found.model[SANA[0]].get(ALPHA)

    config = {"transformer.r": 4, "transformer.lora_alpha": 2, "transformer.alpha_pattern": {}}
    assert alpha() is None
    assert alpha(user=3.0) == 3
    assert alpha({METADATA: json.dumps(config)}, 3.0) == 2
    assert alpha({METADATA: json.dumps(config | {"transformer.use_rslora": True})}) == 4  # times the root of the rank
    assert alpha({METADATA: json.dumps(config | {"transformer.alpha_pattern": {"attn1.to_q": 7}})}) == 7
    assert alpha({METADATA: json.dumps(config)}, 3.0, **{"transformer." + SANA[0] + ".alpha": torch.tensor(5.0)}) == 5


def test_dora_and_lokr():
    stem = "transformer." + SANA[0]
    found = read({stem + ".lora_magnitude_vector": T[0], "lycoris_transformer_blocks_3_attn2_to_q.lokr_w1": T,
                  "lycoris_transformer_blocks_3_attn2_to_q.lokr_w2_a": T}, SANA)
    assert found.model[SANA[0]][DORA].shape == (4, 1)
    assert set(found.model[BLOCK + "attn2.to_q"]) == {"lokr_w1", "lokr_w2_a"}


def test_what_has_no_place_is_told():
    keys = ["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "transformer.transformer_blocks.9.attn1.to_q.lora_A.weight",
            "blocks.3.attn.qkv.lokr_w1", "something.weight"]
    found = read({key: T for key in keys}, SANA, TEXT)
    assert found.unmatched == keys and not found.model and not found.text
