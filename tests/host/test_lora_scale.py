"""How strongly a LoRA acts: PEFT's configuration beside the file, what the log says of alpha, and a change that is too large."""

import json
from dataclasses import asdict

import pytest
import torch

from sanacog.kernels import quant_layers
from sanacog.sana_core import precision as sana_precision

from . import tiny
from .lora_files import SANA_Q, VIDEO_Q, changed, clip, folder, host, matrices, sana, saved, video, written  # noqa: F401

KEY = f"diffusion_model.{SANA_Q}.weight"
RANK = 4


def peft(folder, config, name="adapter_model.safetensors", text=None):
    """A PEFT folder with one LoRA of one layer, saved the way that `name` says. config: what it states, None for no file."""
    folder.mkdir(exist_ok=True)
    a, b = matrices(64, 64, RANK)
    file = {f"base_model.model.{SANA_Q}.lora_A.weight": a, f"base_model.model.{SANA_Q}.lora_B.weight": b * 0.003}
    if name.endswith(".bin"):
        torch.save(file, folder / name)
    else:
        written(folder / name, file)
    if config is not None or text is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config) if text is None else text)
    return folder / name


def scale(host, sana, path, alpha=0.0):
    """What the product of the matrices is multiplied by."""
    got, before = changed(host, host.lora.apply_lora(path, sana, alpha=alpha)[0], KEY)
    a, b = matrices(64, 64, RANK)
    return float(((got - before) * (b @ a * 0.003)).sum() / (b @ a * 0.003).square().sum())


@pytest.mark.parametrize("config, wanted", [
    ({"r": 4, "lora_alpha": 16}, 4.0),
    ({"r": 4, "lora_alpha": 16, "use_rslora": True}, 8.0),
    ({"r": 4, "lora_alpha": 1, "alpha_pattern": {"transformer_blocks.1.attn2.to_q": 8, ".*to_q": 12}}, 2.0),
    ({"r": 8, "lora_alpha": 16, "rank_pattern": {"attn2.to_q": 4}}, 4.0),
    ({"peft_type": "LORA"}, 1.0),
    (None, 1.0),
])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin", "my_style.safetensors"])
def test_peft_states_alpha_beside_its_file(host, sana, tmp_path, caplog, config, wanted, name):
    with caplog.at_level("INFO"):
        assert scale(host, sana, peft(tmp_path, config, name)) == pytest.approx(wanted, rel=1e-4)
    assert ("scale 1 (alpha = rank) is assumed" in caplog.text) == (not (config or {}).get("lora_alpha"))
    assert ("stated by adapter_config.json" in caplog.text) == bool((config or {}).get("lora_alpha"))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_configuration_of_who_knows_which_file(host, sana, tmp_path, caplog):
    path = peft(tmp_path, {"r": 4, "lora_alpha": 16}, "one.safetensors")
    peft(tmp_path, {"r": 4, "lora_alpha": 16}, "two.safetensors")
    with caplog.at_level("INFO"):
        assert scale(host, sana, path) == pytest.approx(1.0, rel=1e-4)
        assert scale(host, sana, path, alpha=2.0) == pytest.approx(0.5, rel=1e-4)
    assert "scale 1 (alpha = rank) is assumed" in caplog.text and "may be another file's" in caplog.text


@pytest.mark.parametrize("text", ["{", "[]", '{"lora_alpha": "16"}', '{"r": 4, "lora_alpha": true}', '{"alpha_pattern": 3}',
                                  '{"lora_alpha": 16, "alpha_pattern": {"(": 3}}', '{"lora_alpha": NaN}'])
def test_a_damaged_configuration_is_told(host, sana, tmp_path, caplog, text):
    assert scale(host, sana, peft(tmp_path, None, text=text)) == pytest.approx(1.0, rel=1e-4)
    assert "adapter_config.json is damaged" in caplog.text and "adapter_model.safetensors" in caplog.text


def test_damaged_metadata_is_told(host, sana, tmp_path, caplog):
    path = saved(tmp_path / "lora.safetensors", {"transformer." + SANA_Q: matrices(64, 64)}, metadata={"lora_adapter_metadata": "{"})
    host.lora.apply_lora(path, sana)
    assert "lora_adapter_metadata" in caplog.text and "damaged" in caplog.text


def test_a_configuration_of_another_rank_is_another_files(host, sana, tmp_path, caplog):
    assert scale(host, sana, peft(tmp_path, {"r": 16, "lora_alpha": 64})) == pytest.approx(1.0, rel=1e-4)
    assert "speaks of rank 16" in caplog.text and "have 4" in caplog.text


def test_peft_bias_has_the_scale_of_the_configuration(host, sana, tmp_path):
    path = peft(tmp_path, {"r": 4, "lora_alpha": 16, "lora_bias": True})
    stem, c = f"base_model.model.{SANA_Q}", torch.linspace(-1, 1, 64)
    a, b = matrices(64, 64, RANK)
    written(path, {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b, f"{stem}.lora_B.bias": c})
    got, before = changed(host, host.lora.apply_lora(path, sana)[0], f"diffusion_model.{SANA_Q}.bias")
    torch.testing.assert_close(got, before + 4 * c)


@pytest.mark.parametrize("kind, settings", [
    ("LoraConfig", dict(r=4, lora_alpha=16, target_modules=["attn2.to_q"])),
    ("LoraConfig", dict(r=4, lora_alpha=16, target_modules=["attn2.to_q"], lora_bias=True, use_rslora=True)),
    ("LoraConfig", dict(r=4, lora_alpha=8, target_modules=["attn2.to_q", "attn1.to_q"], rank_pattern={"attn1.to_q": 2},
                        alpha_pattern={"1.attn1.to_q": 6})),
    ("LoraConfig", dict(r=4, lora_alpha=8, target_modules=["ff.conv_inverted"])),
    ("LoHaConfig", dict(r=4, alpha=8, target_modules=["attn2.to_q"])),
    ("LoKrConfig", dict(r=2, alpha=8, target_modules=["attn2.to_q"], decompose_factor=8)),
    ("LoKrConfig", dict(r=64, alpha=8, target_modules=["attn2.to_q"])),
])
def test_what_peft_saves_acts_as_in_peft(host, sana, tmp_path, caplog, kind, settings):
    peft_of_all = pytest.importorskip("peft")
    with torch.inference_mode(False):
        model = peft_of_all.get_peft_model(tiny.sana(), getattr(peft_of_all, kind)(**settings))
        tiny.randomise(torch.nn.ParameterDict({name.replace(".", "_"): p for name, p in model.named_parameters()
                                               if p.requires_grad}))
        model.save_pretrained(tmp_path)
        wanted = model.merge_and_unload().state_dict()
    ours, _ = host.lora.apply_lora(tmp_path / "adapter_model.safetensors", sana)
    assert ours.patches
    for key, before in sana.model.named_parameters():
        now = changed(host, ours, key)[0] if key in ours.patches else before
        torch.testing.assert_close(now, wanted[key.removeprefix("diffusion_model.")], rtol=1e-4, atol=1e-5)
    assert "left out" not in caplog.text


def test_the_nodes_alpha_is_said_to_be_idle(host, sana, tmp_path, caplog):
    with caplog.at_level("INFO"):
        scale(host, sana, peft(tmp_path, {"r": 4, "lora_alpha": 16}), alpha=2.0)
    assert "the node's alpha 2 is not used" in caplog.text


def test_the_node_runs_anew_when_the_configuration_changes(host, tmp_path, monkeypatch):
    import folder_paths

    from sanacog.nodes.lora import LoadLoRA

    path = peft(tmp_path, {"r": 4, "lora_alpha": 16})
    monkeypatch.setattr(folder_paths, "get_full_path", lambda kind, name: str(tmp_path / name))
    before = LoadLoRA.fingerprint_inputs(path.name)
    assert LoadLoRA.fingerprint_inputs(path.name) == before
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 128}')
    assert LoadLoRA.fingerprint_inputs(path.name) != before


TOO_LARGE = "times as large as the weights"


def sized(host, patcher, key, ratio, rank=4):
    """(A, B) whose product is `ratio` times as large as a weight."""
    weight = dict(patcher.model.named_parameters())[key]
    a, b = matrices(*weight.flatten(1).shape, rank)
    return a, b * ratio * float(weight.norm() / (b @ a).norm())


@pytest.mark.parametrize("family, stem", [("sana", "transformer." + SANA_Q), ("video", "transformer." + VIDEO_Q)])
@pytest.mark.parametrize("ratio, alpha, strength, warns", [
    (0.5, 0.0, 1.0, False),  # strong, as LoRAs go
    (0.9, 0.0, -1.0, False),
    (16.0, 0.0, 1.0, True),  # as exported from SAT at rank 64
    (16.0, 0.0, -1.0, True),
    (16.0, 1.0, 1.0, False),
    (16.0, 0.0, 1 / 64, False),
    (0.5, 0.0, 5.0, True),
    (16.0, 0.0, 0.0, False),
])
def test_a_change_larger_than_the_weights_is_told(host, request, tmp_path, caplog, family, stem, ratio, alpha, strength, warns):
    model = request.getfixturevalue(family)
    key = f"diffusion_model.{stem.removeprefix('transformer.')}.weight"
    path = saved(tmp_path / "lora.safetensors", {stem: sized(host, model, key, ratio, rank=64)})
    host.lora.apply_lora(path, model, strength_model=strength, alpha=alpha)
    assert (TOO_LARGE in caplog.text) == warns
    if warns:
        assert f"{ratio * abs(strength):.1f} {TOO_LARGE} of the model" in caplog.text
        assert "rank is 64" in caplog.text and "1 is usual for files that were exported from SAT" in caplog.text


def test_an_alpha_of_the_file_is_not_advised_about(host, sana, tmp_path, caplog):
    stem = "transformer." + SANA_Q
    path = saved(tmp_path / "lora.safetensors", {stem: sized(host, sana, KEY, 1.0)}, **{stem + ".alpha": torch.tensor(40.0)})
    host.lora.apply_lora(path, sana)
    assert f"10.0 {TOO_LARGE}" in caplog.text and "lower the strength to 0.03" in caplog.text and "SAT" not in caplog.text


def test_who_has_set_the_usual_alpha_is_not_sent_back_to_it(host, sana, tmp_path, caplog):
    path = saved(tmp_path / "lora.safetensors", {"transformer." + SANA_Q: sized(host, sana, KEY, 400.0)})
    host.lora.apply_lora(path, sana, alpha=1.0)
    assert f"100.0 {TOO_LARGE}" in caplog.text and "lower the strength to 0.003" in caplog.text and "SAT" not in caplog.text


def test_fused_layers_and_lokr_are_measured(host, sana, tmp_path, caplog):
    weight = dict(sana.model.named_parameters())["diffusion_model.transformer_blocks.1.attn1.to_q.weight"]
    a, b = matrices(192, 64)
    path = saved(tmp_path / "fused.safetensors", {"blocks.1.attn.qkv": (a, b * 10 * float(weight.norm() / (b @ a).norm()))})
    host.lora.apply_lora(path, sana)
    assert TOO_LARGE in caplog.text
    caplog.clear()
    kron = {"lokr_w1": torch.randn(8, 8), "lokr_w2_a": torch.randn(8, 2), "lokr_w2_b": torch.randn(2, 8)}
    size = torch.kron(kron["lokr_w1"], kron["lokr_w2_a"] @ kron["lokr_w2_b"]).norm()
    weight = dict(sana.model.named_parameters())[KEY]
    kron["lokr_w1"] *= 10 * weight.norm() / size
    written(tmp_path / "lokr.safetensors", {f"diffusion_model.{SANA_Q}.{part}": t for part, t in kron.items()})
    host.lora.apply_lora(tmp_path / "lokr.safetensors", sana)
    assert f"10.0 {TOO_LARGE}" in caplog.text


def test_the_text_encoder_is_measured_by_itself(host, sana, clip, tmp_path, caplog):
    [key] = [key for key, _ in clip.patcher.model.named_parameters() if key.endswith("layers.1.self_attn.q_proj.weight")]
    stems = {"text_encoder.layers.1.self_attn.q_proj": sized(host, clip.patcher, key, 8.0),
             "transformer." + SANA_Q: sized(host, sana, KEY, 0.1)}
    path = saved(tmp_path / "lora.safetensors", stems)
    host.lora.apply_lora(path, sana, clip)
    assert f"8.0 {TOO_LARGE} of the text encoder" in caplog.text and "of the model (" not in caplog.text
    caplog.clear()
    host.lora.apply_lora(path, sana, clip, 1.0, 0.05)
    assert TOO_LARGE not in caplog.text


def test_a_loaded_model_is_measured_without_the_loras_in_it(host, folder, tmp_path, caplog):
    import comfy.model_management

    model = host.sana.load_sana(tiny.save_sana(tmp_path / "sana.safetensors"))
    path = saved(tmp_path / "lora.safetensors", {"transformer." + SANA_Q: sized(host, model, KEY, 16.0)})
    patched, _ = host.lora.apply_lora(path, model)
    caplog.clear()
    comfy.model_management.load_models_gpu([patched])
    try:
        host.lora.apply_lora(path, model)
        assert f"16.0 {TOO_LARGE}" in caplog.text
    finally:
        comfy.model_management.unload_all_models()


def test_quantised_weights_are_passed_over(host, sana, tmp_path, caplog):
    wide = "transformer_blocks.1.ff.conv_inverted"
    tensors, entries = quant_layers.quantised(tiny.sana().state_dict(), "fp8", sana_precision.KEPT)
    told = {"config": json.dumps(asdict(tiny.SANA))} | quant_layers.to_metadata(entries)
    model = host.sana.load_sana(written(tmp_path / "small.safetensors", tensors, told))
    key = f"diffusion_model.{wide}.weight"
    assert wide in entries and type(dict(model.model.named_parameters())[key].data) is not torch.Tensor
    path = saved(tmp_path / "lora.safetensors", {"transformer." + wide: sized(host, sana, key, 16.0)})
    host.lora.apply_lora(path, sana)
    assert f"16.0 {TOO_LARGE}" in caplog.text
    caplog.clear()
    patched, _ = host.lora.apply_lora(path, model)
    assert list(patched.patches) == [key] and TOO_LARGE not in caplog.text
