"""LoRA files of every naming end at the same layers."""

import pytest
import torch

from sanacog.host.lora_alpha import PeftConfig
from sanacog.host.lora_keys import ALPHA, BIAS, DORA, DOWN, FILE, NOBODY, SAT, UP, USER, WHOLE, read

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
    assert found.alphas == {SAT: 4}


def test_comfyui_core_names():
    found = read({"diffusion_model.blocks.3.q.lora_A.weight": T, "diffusion_model.blocks.3.ff_proj.lora_A.weight": T}, VIDEO)
    assert list(found.model) == [BLOCK + "attn1.to_q", BLOCK + "ff.net.0.proj"]


@pytest.mark.parametrize("stem", ["text_encoder.model." + GEMMA, "text_encoder." + GEMMA, "lora_te_model_layers_1_self_attn_q_proj",
                                  "lora_te1_model_layers_1_self_attn_q_proj"])
def test_text_encoder(stem):
    found = read({stem + ".lora_A.weight": T}, SANA, TEXT)
    assert list(found.text) == TEXT and not found.model


def test_alpha_of_the_file_of_its_configuration_and_of_the_user():
    def alpha(config=None, user=0.0, **more):
        configs = [PeftConfig("metadata", config)] if config else []
        found = read({"transformer." + VIDEO[0] + ".lora_A.weight": T, **more}, VIDEO, (), configs, user)
        [source] = found.alphas
        return found.model[VIDEO[0]].get(ALPHA), source

    config = {"transformer.r": 4, "transformer.lora_alpha": 2, "transformer.alpha_pattern": {}}
    assert alpha() == (None, NOBODY)
    assert alpha(user=3.0) == (3, USER)
    assert alpha(config, 3.0) == (2, "metadata")
    assert alpha(config | {"transformer.use_rslora": True}) == (4, "metadata")  # times the root of the rank
    assert alpha(config | {"transformer.alpha_pattern": {"attn1.to_q": 7, "to_q": 8}}) == (7, "metadata")
    assert alpha(config | {"transformer.alpha_pattern": {"tn1.to_q": 7}}) == (2, "metadata")
    assert alpha(config, 3.0, **{"transformer." + VIDEO[0] + ".alpha": torch.tensor(5.0)}) == (5, FILE)


def test_alpha_patterns_may_mean_the_names_of_the_file():
    config = PeftConfig("beside", {"lora_alpha": 2, "alpha_pattern": {"3.attn.qkv": 7}})
    found = read({"blocks.3.attn.qkv.lora_A.weight": T, "blocks.3.cross_attn.q_linear.lora_A.weight": T}, SANA, (), [config])
    assert [found.model[BLOCK + name][ALPHA] for name in ("attn1.to_k", "attn2.to_q")] == [7, 2]


def test_a_configuration_of_another_rank_is_not_used():
    config = PeftConfig("beside", {"r": 8, "lora_alpha": 2})
    found = read({"transformer." + SANA[0] + ".lora_A.weight": T}, SANA, (), [config])
    assert ALPHA not in found.model[SANA[0]] and found.alphas == {NOBODY: 1}
    [note] = found.notes
    assert "rank 8" in note and SANA[0] in note and "have 4" in note


@pytest.mark.parametrize("parts, has_scale", [
    ({"hada_w1_a": T, "hada_w1_b": T, "hada_w2_a": T, "hada_w2_b": T}, True),
    ({"lokr_w1": T, "lokr_w2_a": T, "lokr_w2_b": T}, True),
    ({"a1.weight": T, "a2.weight": T, "b1.weight": T, "b2.weight": T}, True),
    ({"diff": T}, False)])
def test_alpha_is_of_kinds_with_a_rank(parts, has_scale):
    """PEFT calls it "alpha" in those other kinds."""
    config = PeftConfig("beside", {"r": 4, "alpha": 2})
    found = read({f"base_model.model.{SANA[0]}.{part}": t for part, t in parts.items()}, SANA, (), [config])
    assert found.model[SANA[0]].get(ALPHA) == (2 if has_scale else None) and len(found.alphas) == has_scale


def test_a_lokr_of_whole_matrices_has_peft_s_scale_in_it():
    file = {f"base_model.model.{SANA[0]}.{part}": T for part in ("lokr_w1", "lokr_w2")}
    assert torch.equal(read(file, SANA).model[SANA[0]]["lokr_w1"], T)
    parts = read(file, SANA, (), [PeftConfig("beside", {"r": 4, "alpha": 2})]).model[SANA[0]]
    assert torch.equal(parts["lokr_w1"], T / 2) and torch.equal(parts["lokr_w2"], T) and ALPHA not in parts


def test_the_bound_of_a_rotation_is_no_alpha_of_ours():
    found = read({f"transformer.{SANA[0]}.oft_blocks": T[None]}, SANA, (), [PeftConfig("beside", {"lora_alpha": 2})], 3.0)
    assert found.model[SANA[0]][ALPHA] == 0 and not found.alphas


@pytest.mark.parametrize("order", [1, -1])
def test_peft_bias_is_a_change_of_the_bias(order):
    stem = "base_model.model." + SANA[0]
    file = {stem + ".lora_A.weight": T, stem + ".lora_B.weight": 2 * T, stem + ".lora_B.bias": 3 * T[0]}
    found = read(dict(list(file.items())[::order]), SANA, alpha=2.0)
    parts = found.model[SANA[0]]
    assert set(parts) == {UP, DOWN, ALPHA, BIAS} and torch.equal(parts[UP], 2 * T) and torch.equal(parts[BIAS], 1.5 * T[0])


def test_kinds_are_handed_on_as_they_are():
    parts = ("w_norm", "b_norm", "diff", "diff_b", "set_weight", "rescale", "reshape_weight", "oft_R", "a1.weight",
             "new.kind.weight")
    found = read({f"diffusion_model.{SANA[3]}.{part}": T for part in parts}, SANA)
    assert set(found.model[SANA[3]]) == set(parts) and not found.unmatched and not found.left_out


def test_what_the_file_says_twice():
    file = {f"transformer.{SANA[0]}.lora_A.one.weight": T, f"transformer.{SANA[0]}.lora_A.two.weight": 2 * T,
            f"lora_unet_{SANA[0].replace('.', '_')}.lora_down.weight": 3 * T}
    found = read(file, SANA)
    assert torch.equal(found.model[SANA[0]][DOWN], T)
    assert set(found.left_out) == {f"transformer.{SANA[0]}.lora_A.two.weight", f"lora_unet_{SANA[0].replace('.', '_')}"}


def test_whole_weights_are_no_change():
    keys = [f"transformer.{SANA[0]}.{part}" for part in ("weight", "bias", "base_layer.weight", "modules_to_save.bias")]
    found = read({key: T for key in keys}, SANA)
    assert found.left_out == dict.fromkeys(keys, WHOLE) and not found.model


def test_dora_and_lokr():
    stem = "transformer." + SANA[0]
    found = read({stem + ".lora_magnitude_vector": T[0], "lycoris_transformer_blocks_3_attn2_to_q.lokr_w1": T,
                  "lycoris_transformer_blocks_3_attn2_to_q.lokr_w2_a": T}, SANA)
    assert found.model[SANA[0]][DORA].shape == (4, 1)
    assert set(found.model[BLOCK + "attn2.to_q"]) == {"lokr_w1", "lokr_w2_a"}


def test_what_has_no_place_is_told():
    keys = ["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "transformer.transformer_blocks.9.attn1.to_q.lora_A.weight",
            "transformer.layers.3.attention.query_key_value.matrix_A.3", "something.weight", "text_encoder.layers.9.q.lora_A.weight"]
    found = read({key: T for key in keys}, SANA, TEXT)
    assert found.unmatched == keys and not found.model and not found.text and not found.left_out


def test_what_a_fused_layer_cannot_hold_is_told():
    found = read({"blocks.3.attn.qkv.lokr_w1": T, "blocks.3.cross_attn.kv_linear.lora_B.weight": T[:3]}, SANA)
    assert not found.model and "lokr_w1" in found.left_out["blocks.3.attn.qkv"]
    assert "3 rows" in found.left_out["blocks.3.cross_attn.kv_linear"]
