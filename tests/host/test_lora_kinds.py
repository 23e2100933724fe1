"""Kinds of change in a LoRA file: what the host makes of them counts, and the log names the rest with the true reason."""

import pytest
import torch

from .lora_files import SANA_Q, changed, clip, folder, host, matrices, sana, saved, video, written  # noqa: F401

NO_BIAS = "transformer_blocks.1.attn1.to_q"
DEPTHWISE = "transformer_blocks.1.ff.conv_depth"
STEM, KEY = "diffusion_model." + SANA_Q, f"diffusion_model.{SANA_Q}.weight"
GEMMA = "layers.1.self_attn.q_proj"


def numbers(*shape, seed=0, scale=0.1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def lora(stem, rows=64, columns=64, scale=0.1):
    a, b = matrices(rows, columns)
    return {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b * scale}


KINDS = {  # of a layer of 64 x 64
    "lora": {"lora_up.weight": numbers(64, 4), "lora_down.weight": numbers(4, 64, seed=1), "alpha": torch.tensor(2.0)},
    "loha": {"hada_w1_a": numbers(64, 4), "hada_w1_b": numbers(4, 64, seed=1), "hada_w2_a": numbers(64, 4, seed=2),
             "hada_w2_b": numbers(4, 64, seed=3), "alpha": torch.tensor(2.0)},
    "lokr": {"lokr_w1": numbers(8, 8), "lokr_w2_a": numbers(8, 2, seed=1), "lokr_w2_b": numbers(2, 8, seed=2),
             "alpha": torch.tensor(1.0)},
    "glora": {"a1.weight": numbers(64, 4), "a2.weight": numbers(4, 64, seed=1), "b1.weight": numbers(64, 4, seed=2),
              "b2.weight": numbers(4, 64, seed=3), "alpha": torch.tensor(2.0)},
    "oft": {"oft_blocks": numbers(8, 8, 8)},
    "oft within a bound": {"oft_blocks": numbers(8, 8, 8), "alpha": torch.tensor(0.05), "rescale": numbers(64, 1) + 1},
    "boft": {"oft_blocks": numbers(3, 8, 8, 8), "alpha": torch.tensor(0.0)},
    "diff": {"diff": numbers(64, 64), "diff_b": numbers(64)},
    "norm": {"w_norm": numbers(64, 64), "b_norm": numbers(64)},
    "set": {"set_weight": numbers(64, 64)},
}
NOTHING = {
    "oft_R": {"oft_R": numbers(8, 28)},
    "oft_R of PEFT": {"oft_R.default.weight": numbers(8, 28)},
    "oft_r": {"oft_r": numbers(8, 8, 8)},
    "oft_diag": {"oft_diag": numbers(8, 8)},
    "alpha": {"alpha": torch.tensor(4.0)},
    "hada_w1_b": {"hada_w1_b": numbers(4, 64)},
    "dora_scale": {"dora_scale": numbers(64, 1)},
    "hada_w2_b": {name: t for name, t in KINDS["loha"].items() if name != "hada_w2_b"},
    "lokr": {"lokr_w1": numbers(8, 8)},
    "b2.weight": {name: t for name, t in KINDS["glora"].items() if name != "b2.weight"},
    "zero": KINDS["lora"] | {"lora_up.weight": torch.zeros(64, 4)},
    "alpha is zero": KINDS["loha"] | {"alpha": torch.tensor(0.0)},
    "zero diff": {"diff": torch.zeros(64, 64)},
    "zero rotation": {"oft_blocks": torch.zeros(8, 8, 8)},
    "lora_up.bias": {"lora_B.bias": numbers(64)},
    "alpha of (2,)": KINDS["lora"] | {"alpha": torch.ones(2)},
}


def at(stem, parts):
    return {f"{stem}.{part}": tensor for part, tensor in parts.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_stock_loader_reads_is_read(host, sana, tmp_path, caplog, kind):
    path = written(tmp_path / "lora.safetensors", at(STEM, KINDS[kind]))
    with caplog.at_level("INFO"):
        ours, _ = host.lora.apply_lora(path, sana)
    stock, _ = host.comfy.sd.load_lora_for_models(sana, None, at(STEM, KINDS[kind]), 1.0, 0.0)
    assert set(ours.patches) == set(stock.patches) and "changes 1 layers of the model" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "ERROR" or "left out" in record.getMessage()]
    for key in ours.patches:
        got, before = changed(host, ours, key)
        torch.testing.assert_close(got, changed(host, stock, key)[0])
        assert (got - before).abs().max() > 1e-4


def test_boft_without_alpha_turns_without_a_bound(host, sana, tmp_path):
    blocks = KINDS["boft"]["oft_blocks"]
    wanted, got = ([changed(host, host.lora.apply_lora(written(tmp_path / name, at(STEM, parts)), sana)[0], KEY)]
                   for name, parts in (("0", KINDS["boft"]), ("none", {"oft_blocks": blocks})))
    torch.testing.assert_close(got, wanted)
    assert (got[0][0] - got[0][1]).abs().max() > 0.01


@pytest.mark.parametrize("what", NOTHING)
def test_a_file_of_which_nothing_acts_is_refused(host, sana, tmp_path, what):
    with pytest.raises(ValueError, match="nothing in this file acts") as error:
        host.lora.apply_lora(written(tmp_path / "lora.safetensors", at(STEM, NOTHING[what])), sana)
    assert "lora.safetensors" in str(error.value) and SANA_Q in str(error.value) and what.split()[0] in str(error.value)


@pytest.mark.parametrize("what", NOTHING)
def test_what_does_not_act_is_not_counted(host, sana, tmp_path, caplog, what):
    """Beside a layer that is changed, one that is not is named."""
    file = at(STEM, NOTHING[what]) | lora("diffusion_model." + NO_BIAS)
    with caplog.at_level("INFO"):
        model, _ = host.lora.apply_lora(written(tmp_path / "lora.safetensors", file), sana)
    assert list(model.patches) == [f"diffusion_model.{NO_BIAS}.weight"]
    assert "changes 1 layers of the model (1 lora)" in caplog.text
    [left_out] = [r.getMessage() for r in caplog.records if "left out" in r.getMessage() and r.levelname == "WARNING"]
    assert SANA_Q in left_out and what.split()[0] in left_out


def test_a_part_that_is_not_used_is_named(host, sana, tmp_path, caplog):
    file = at(STEM, KINDS["lora"] | {"oft_R": numbers(8, 28), "lora_E": numbers(4, 1)})
    model, _ = host.lora.apply_lora(written(tmp_path / "lora.safetensors", file), sana)
    assert list(model.patches) == [KEY] and f"{SANA_Q}.oft_R" in caplog.text and f"{SANA_Q}.lora_E" in caplog.text


def test_of_two_changes_of_a_layer_the_lost_one_is_named(host, sana, tmp_path, caplog):
    file = at(STEM, KINDS["lora"] | {"diff": numbers(64, 64)})
    host.lora.apply_lora(written(tmp_path / "lora.safetensors", file), sana)
    assert f"{SANA_Q}.lora_up.weight" in caplog.text and "does not use" in caplog.text


def test_norms_beside_lokr(host, video, tmp_path, caplog):
    norm = "transformer_blocks.1.norm1.norm"
    weights = dict(video.model.named_parameters())
    w, b = (weights[f"diffusion_model.{norm}.{part}"] for part in ("weight", "bias"))
    file = at(f"lycoris_{norm.replace('.', '_')}", {"w_norm": numbers(*w.shape), "b_norm": numbers(*b.shape)})
    file |= at("lycoris_transformer_blocks_1_attn1_to_q", KINDS["lokr"])
    with caplog.at_level("INFO"):
        model, _ = host.lora.apply_lora(written(tmp_path / "lora.safetensors", file), video)
    assert "changes 2 layers of the model (1 lokr, 1 diff, 1 bias)" in caplog.text
    got, before = changed(host, model, f"diffusion_model.{norm}.bias")
    torch.testing.assert_close(got, before + numbers(*b.shape))


@pytest.mark.parametrize("part", ["diff_b", "b_norm"])
def test_a_bias_that_the_layer_has_not(host, sana, tmp_path, caplog, part):
    other = {"diff": numbers(64, 64)} if part == "diff_b" else {"w_norm": numbers(64, 64)}
    file = at("diffusion_model." + NO_BIAS, other | {part: numbers(64)})
    with caplog.at_level("INFO"):
        model, _ = host.lora.apply_lora(written(tmp_path / "lora.safetensors", file), sana)
    assert list(model.patches) == [f"diffusion_model.{NO_BIAS}.weight"]
    assert f"{NO_BIAS}.bias: the layer has no bias" in caplog.text
    alone = at("diffusion_model." + NO_BIAS, {"diff_b": numbers(64)})
    with pytest.raises(ValueError, match="no bias"):
        host.lora.apply_lora(written(tmp_path / "bias.safetensors", alone), sana)


@pytest.mark.parametrize("order", [1, -1], ids=["as PEFT", "bias first"])
def test_peft_bias(host, sana, tmp_path, order):
    """y = W x + b + alpha / rank (B (A x) + c)"""
    c = numbers(64, seed=4)
    file = lora("base_model.model." + SANA_Q) | {f"base_model.model.{SANA_Q}.lora_B.bias": c}
    torch.save(dict(list(file.items())[::order]), tmp_path / "adapter_model.bin")
    model, _ = host.lora.apply_lora(tmp_path / "adapter_model.bin", sana, alpha=2.0)
    a, b = (file[f"base_model.model.{SANA_Q}.lora_{side}.weight"] for side in "AB")
    for key, change in ((KEY, b @ a), (f"diffusion_model.{SANA_Q}.bias", c)):
        got, before = changed(host, model, key)
        torch.testing.assert_close(got, before + 2.0 / 4 * change)


def test_peft_bias_without_a_place(host, sana, tmp_path, caplog):
    stem = "base_model.model." + NO_BIAS
    file = lora(stem) | {f"{stem}.lora_B.bias": numbers(64), f"{stem}.lora_A.bias": numbers(4)}
    model, _ = host.lora.apply_lora(written(tmp_path / "lora.safetensors", file), sana)
    got, before = changed(host, model, f"diffusion_model.{NO_BIAS}.weight")
    torch.testing.assert_close(got, before + file[f"{stem}.lora_B.weight"] @ file[f"{stem}.lora_A.weight"])
    assert "no bias" in caplog.text and "lora_A.bias" in caplog.text


def test_a_dense_pair_for_a_depthwise_convolution(host, sana, tmp_path, caplog):
    """OneTrainer's: the product has as many numbers as the weight, and means something else."""
    inner = dict(sana.model.named_parameters())[f"diffusion_model.{DEPTHWISE}.weight"].shape[0]
    name = "lora_transformer_" + DEPTHWISE.replace(".", "_")
    dense = {f"{name}.lora_down.weight": numbers(4, inner, 3, 3), f"{name}.lora_up.weight": numbers(1, 4, 1, 1)}
    with caplog.at_level("INFO"):
        model, _ = host.lora.apply_lora(written(tmp_path / "lora.safetensors", dense | lora("transformer." + SANA_Q)), sana)
    assert list(model.patches) == [KEY] and "changes 1 layers" in caplog.text
    assert DEPTHWISE in caplog.text and f"1 x {9 * inner}, the layer has {inner} x 9" in caplog.text
    with pytest.raises(ValueError, match=f"the layer has {inner} x 9") as error:
        host.lora.apply_lora(written(tmp_path / "alone.safetensors", dense), sana)
    assert "another size" not in str(error.value)


def test_changes_of_convolutions(host, sana, tmp_path):
    """1 x 1 convolutions are linear layers here; DoRA's sizes have a convolution's shape there."""
    wide, depth = "transformer_blocks.1.ff.conv_inverted", DEPTHWISE
    weights = dict(sana.model.named_parameters())
    rows, columns = weights[f"diffusion_model.{wide}.weight"].shape
    a, b, size = numbers(4, 1, 3, 3), numbers(rows, 4, 1, 1, scale=1e-5), numbers(rows).abs() + 0.5
    file = {f"transformer.{wide}.diff": numbers(rows, columns, 1, 1), f"base_model.model.{depth}.lora_A.weight": a,
            f"base_model.model.{depth}.lora_B.weight": b,
            f"base_model.model.{depth}.lora_magnitude_vector": size.reshape(1, rows, 1, 1)}
    model, _ = host.lora.apply_lora(written(tmp_path / "lora.safetensors", file), sana)
    got, before = changed(host, model, f"diffusion_model.{wide}.weight")
    torch.testing.assert_close(got, before + numbers(rows, columns))
    got, before = changed(host, model, f"diffusion_model.{depth}.weight")
    sum_ = before + (b.flatten(1) @ a.flatten(1)).reshape(before.shape)
    torch.testing.assert_close(got, size[:, None, None, None] * sum_ / sum_.flatten(1).norm(dim=1)[:, None, None, None],
                               rtol=1e-3, atol=1e-3)


def test_a_fused_loha_is_cut(host, sana, tmp_path):
    parts = KINDS["loha"] | {"hada_w1_a": numbers(192, 4), "hada_w2_a": numbers(192, 4, seed=2)}
    model, _ = host.lora.apply_lora(written(tmp_path / "lora.safetensors", at("blocks.1.attn.qkv", parts)), sana)
    change = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"]) * 2 / 4
    for i, name in enumerate(("to_q", "to_k", "to_v")):
        got, before = changed(host, model, f"diffusion_model.transformer_blocks.1.attn1.{name}.weight")
        torch.testing.assert_close(got, before + change[64 * i : 64 * (i + 1)])


@pytest.mark.parametrize("parts, reason", [
    (KINDS["oft"], "oft_blocks of a fused layer cannot be divided"), (KINDS["lokr"], "lokr_w1 of a fused layer"),
    ({"lora_A.weight": numbers(4, 64), "lora_B.weight": numbers(64, 4)}, "64 rows"),
])
def test_what_a_fused_layer_cannot_hold(host, sana, tmp_path, caplog, parts, reason):
    file = at("blocks.1.attn.qkv", parts) | lora("transformer." + SANA_Q)
    model, _ = host.lora.apply_lora(written(tmp_path / "lora.safetensors", file), sana)
    assert list(model.patches) == [KEY] and "blocks.1.attn.qkv" in caplog.text and reason in caplog.text


def test_sat_counts_what_acts(host, video, tmp_path, caplog):
    stem = "model.diffusion_model.transformer.layers.1.attention."
    file = {f"{stem}query_key_value.matrix_{side}.{i}": numbers(*((4, 64) if side == "A" else (64, 4)), seed=i)
            for side in "AB" for i in range(3)}
    file[f"{stem}query_key_value.matrix_B.1"].zero_()
    del file[f"{stem}query_key_value.matrix_A.2"]
    file |= {f"{stem}dense.matrix_A.0": numbers(4, 64), f"{stem}dense.matrix_B.0": numbers(64, 4)}
    file |= {f"{stem}dense.original.weight": numbers(64, 64)}
    with caplog.at_level("INFO"):
        model, _ = host.lora.apply_lora(written(tmp_path / "lora.safetensors", file), video)
    assert len(model.patches) == 2 and "changes 2 layers of the model (2 lora)" in caplog.text
    for words in ("attn1.to_k: lora_up.weight is zero", "attn1.to_v: lora_down.weight is missing", "whole weight"):
        assert words in caplog.text


def test_text_encoder_layers_are_told_of_too(host, sana, clip, tmp_path, caplog):
    file = at(f"text_encoder.{GEMMA}", {"oft_R": numbers(8, 28)}) | lora("transformer." + SANA_Q)
    file |= lora("text_encoder.layers.0.self_attn.q_proj", 512) | lora("text_encoder.layers.0.mlp.up_proj", 90)
    file |= lora("text_encoder.layers.0.self_attn.o_proj", 64, 512) | lora("text_encoder.layers.77.mlp.up_proj", 96)
    path = written(tmp_path / "lora.safetensors", file)
    with caplog.at_level("INFO"):
        _, changed_clip = host.lora.apply_lora(path, sana, clip)
    assert len(changed_clip.patcher.patches) == 2
    assert "changes 1 layers of the model (1 lora) and 2 layers of the text encoder (2 lora)" in caplog.text
    for words in (f"{GEMMA}: ComfyUI knows no change that is made of oft_R", "90 x 64, the layer has 96 x 64",
                  "2 tensors have no place in this text encoder"):
        assert words in caplog.text
    caplog.clear()
    host.lora.apply_lora(path, sana)
    assert "9 tensors are for the text encoder, and no CLIP is connected" in caplog.text


def test_a_lora_of_the_text_encoder_alone_wants_one(host, sana, tmp_path):
    with pytest.raises(ValueError, match="Connect a CLIP"):
        host.lora.apply_lora(written(tmp_path / "lora.safetensors", lora("text_encoder." + GEMMA, 512)), sana)


def test_mostly_another_size_is_another_model(host, sana, clip, tmp_path):
    """Even where a few layers happen to fit, as the text encoder's do."""
    file = lora("transformer." + SANA_Q, 96) | lora("text_encoder." + GEMMA, 512)
    with pytest.raises(ValueError, match="another size of the model"):
        host.lora.apply_lora(written(tmp_path / "lora.safetensors", file), sana, clip)


def test_stock_spelling_of_old_diffusers(host, sana, tmp_path):
    file = {f"transformer.{SANA_Q}_lora.down.weight": numbers(4, 64), f"transformer.{SANA_Q}_lora.up.weight": numbers(64, 4)}
    assert list(host.lora.apply_lora(written(tmp_path / "lora.safetensors", file), sana)[0].patches) == [KEY]


SHAPES = {"a number": (), "empty": (0,), "a row": (64,), "three": (2, 2, 2), "four": (64, 64, 1, 1), "no rows": (0, 64)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stem, kind", [*((STEM, kind) for kind in KINDS), *(("blocks.1.attn.qkv", kind) for kind in ("lora", "loha"))])
def test_parts_of_any_shape(host, sana, tmp_path, caplog, stem, kind, shape):
    """Whatever is reported as changed is changed when a picture is made; all else is left out, and nothing breaks."""
    strange = numbers(*SHAPES[shape]) + 0.01
    for part in (*KINDS[kind], "dora_scale", "reshape_weight"):
        file = KINDS[kind] | {part: strange.abs().ceil().long() if part == "reshape_weight" else strange}
        caplog.clear()
        try:
            model, _ = host.lora.apply_lora(written(tmp_path / "lora.safetensors", at(stem, file)), sana)
        except ValueError as error:
            assert "lora.safetensors" in str(error)
            continue
        caplog.clear()
        assert model.patches
        for key in model.patches:
            got, before = changed(host, model, key)
            assert got.shape == before.shape and not torch.equal(got, before)
        assert not caplog.records
