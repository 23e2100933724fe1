"""Load LoRA and the stock loaders on both families: the same weights whatever the file's naming."""

import pytest
import torch
from safetensors.torch import save_file

from sanacog.sana_core.config import SanaParams

from . import tiny
from .lora_files import SANA_Q, VIDEO_Q, changed, clip, folder, host, matrices, sana, saved, video  # noqa: F401


@pytest.mark.parametrize("stem, down, up", [
    ("transformer." + SANA_Q, ".lora_A.weight", ".lora_B.weight"),
    ("base_model.model." + SANA_Q, ".lora_A.default.weight", ".lora_B.default.weight"),
    ("lora_unet_" + SANA_Q.replace(".", "_"), ".lora_down.weight", ".lora_up.weight"),
    ("blocks.1.cross_attn.q_linear", ".lora_A.weight", ".lora_B.weight"),
])
def test_sana(host, sana, tmp_path, stem, down, up):
    a, b = matrices(64, 64)
    path = saved(tmp_path / "lora.safetensors", {stem: (a, b)}, down, up)
    model, none = host.lora.apply_lora(path, sana, strength_model=0.5, alpha=2.0)
    key = f"diffusion_model.{SANA_Q}.weight"
    got, before = changed(host, model, key)
    assert none is None and list(model.patches) == [key] and not sana.patches
    torch.testing.assert_close(got, before + 0.5 * (2.0 / 4) * b @ a)


def test_sana_fused_and_convolutions(host, sana, tmp_path):
    params: SanaParams = sana.model.model_config.params
    a, b = matrices(3 * 64, 64)
    inner = 2 * params.hidden
    c, d = matrices(inner, 64)
    path = saved(tmp_path / "lora.safetensors", {
        "blocks.0.attn.qkv": (a, b), "blocks.0.mlp.inverted_conv.conv": (c[:, :, None, None], d[:, :, None, None])})
    model, _ = host.lora.apply_lora(path, sana)
    for i, name in enumerate(("to_q", "to_k", "to_v")):
        got, before = changed(host, model, f"diffusion_model.transformer_blocks.0.attn1.{name}.weight")
        torch.testing.assert_close(got, before + b[64 * i : 64 * (i + 1)] @ a)
    got, before = changed(host, model, "diffusion_model.transformer_blocks.0.ff.conv_inverted.weight")
    torch.testing.assert_close(got, before + d @ c)


@pytest.mark.parametrize("stem, down, up, scale", [
    ("transformer." + VIDEO_Q, ".lora_A.weight", ".lora_B.weight", 1.0),
    ("lora_unet__" + VIDEO_Q.replace(".", "_"), ".lora_down.weight", ".lora_up.weight", 1.0),
    ("model.diffusion_model.transformer.layers.1.attention.query_key_value", ".matrix_A.0", ".matrix_B.0", 1 / 4),
])
def test_cogvideox(host, video, tmp_path, stem, down, up, scale):
    key = f"diffusion_model.{VIDEO_Q}.weight"
    a, b = matrices(*dict(video.model.named_parameters())[key].shape)
    model, _ = host.lora.apply_lora(saved(tmp_path / "lora.safetensors", {stem: (a, b)}, down, up), video)
    got, before = changed(host, model, key)
    assert list(model.patches) == [key]
    torch.testing.assert_close(got, before + scale * b @ a)


def test_text_encoder(host, sana, clip, tmp_path):
    a, b = matrices(512, 64)
    stems = {"text_encoder.model.layers.1.self_attn.q_proj": (a, b), "transformer." + SANA_Q: matrices(64, 64)}
    model, changed_clip = host.lora.apply_lora(saved(tmp_path / "lora.safetensors", stems), sana, clip, 1.0, 0.5)
    [key] = changed_clip.patcher.patches
    got, before = changed(host, changed_clip.patcher, key)
    assert len(model.patches) == 1 and not clip.patcher.patches
    torch.testing.assert_close(got, before + 0.5 * b @ a)


def test_dora(host, sana, tmp_path):
    """W' = m (W + B A) / |W + B A| along the inputs. (The host divides by |W|, so it holds for small changes.)"""
    a, b = matrices(64, 64)
    b = b * 1e-4
    size = torch.rand(64, generator=torch.Generator().manual_seed(3)) + 0.5
    stem = "base_model.model." + SANA_Q
    path = saved(tmp_path / "lora.safetensors", {stem: (a, b)}, **{stem + ".lora_magnitude_vector": size})
    got, before = changed(host, host.lora.apply_lora(path, sana)[0], f"diffusion_model.{SANA_Q}.weight")
    sum_ = before + b @ a
    torch.testing.assert_close(got, size[:, None] * sum_ / sum_.norm(dim=1, keepdim=True), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("family", ["sana", "video"])
@pytest.mark.parametrize("prefix", ["transformer.{}", "diffusion_model.{}", "lycoris_{}", "lora_unet_{}"])
def test_stock_loaders_read_these_too(host, request, family, prefix):
    model, name = request.getfixturevalue(family), {"sana": SANA_Q, "video": VIDEO_Q}[family]
    stem = prefix.format(name if "." in prefix else name.replace(".", "_"))
    a, b = matrices(*dict(model.model.named_parameters())[f"diffusion_model.{name}.weight"].shape)
    lora = {stem + ".lora_down.weight": a, stem + ".lora_up.weight": b}
    patched, _ = host.comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    assert list(patched.patches) == [f"diffusion_model.{name}.weight"]


@pytest.mark.parametrize("family, name, load", [("sana", SANA_Q, "load_sana"), ("video", VIDEO_Q, "load_cogvideox")])
def test_a_saved_model_keeps_it(host, request, tmp_path, family, name, load):
    model, key = request.getfixturevalue(family), f"diffusion_model.{name}.weight"
    lora = {f"transformer.{name}": matrices(*dict(model.model.named_parameters())[key].shape)}
    with_lora, _ = host.lora.apply_lora(saved(tmp_path / "lora.safetensors", lora), model, strength_model=0.5)
    wanted, before = changed(host, with_lora, key)
    path = tmp_path / "model.safetensors"
    host.comfy.sd.save_checkpoint(str(path), with_lora, None, None)
    again = getattr({"sana": host.sana, "video": host.cogvideox}[family], load)(path)
    kept = dict(again.model.named_parameters())[key].float()
    torch.testing.assert_close(kept, wanted, rtol=1e-4, atol=1e-5)
    assert (kept - before).abs().max() > 0.1


def test_two_loras_add_up(host, sana, tmp_path):
    pairs = [matrices(64, 64, seed=i) for i in range(2)]
    model = sana
    for i, pair in enumerate(pairs):
        model, _ = host.lora.apply_lora(saved(tmp_path / f"{i}.safetensors", {"transformer." + SANA_Q: pair}), model)
    got, before = changed(host, model, f"diffusion_model.{SANA_Q}.weight")
    torch.testing.assert_close(got, before + sum(b @ a for a, b in pairs))


def test_what_does_not_fit_is_told(host, sana, tmp_path, caplog):
    stems = {"transformer." + SANA_Q: matrices(64, 64), "transformer.transformer_blocks.77.attn1.to_q": matrices(64, 64)}
    with caplog.at_level("INFO"):
        host.lora.apply_lora(saved(tmp_path / "lora.safetensors", stems), sana)
    assert "2 tensors have no place in this model" in caplog.text and "transformer_blocks.77" in caplog.text


@pytest.mark.parametrize("stems, message", [
    ({"lora_unet_double_blocks_0_img_attn_qkv": (64, 64)}, "nothing in this file fits the model"),
    ({"transformer." + SANA_Q: (96, 64)}, "another size"),
    ({"transformer." + SANA_Q: (64, 96)}, "another size"),
])
def test_wrong_loras_are_refused(host, sana, tmp_path, stems, message):
    path = saved(tmp_path / "lora.safetensors", {stem: matrices(*size) for stem, size in stems.items()})
    with pytest.raises(ValueError, match=message) as error:
        host.lora.apply_lora(path, sana)
    assert "lora.safetensors" in str(error.value) and not sana.patches


def test_half_a_lora_is_refused(host, sana, tmp_path):
    save_file({f"transformer.{SANA_Q}.lora_A.weight": matrices(64, 64)[0]}, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="lora_up.weight is missing"):
        host.lora.apply_lora(tmp_path / "lora.safetensors", sana)


def test_a_model_is_no_lora(host, sana, tmp_path):
    with pytest.raises(ValueError, match="no LoRA"):
        host.lora.apply_lora(tiny.save_sana(tmp_path / "sana.safetensors"), sana)
