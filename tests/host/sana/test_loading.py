"""Sana's files in the real host: saved, loaded again, patched, listed, refused."""

import pytest
import torch
from safetensors import safe_open

from .. import tiny
from .sana_model import PROMPT, apart, clip, host, model, noise, reference, sample, saved, vae, weights  # noqa: F401


def test_stock_lora_keys(host, model):
    name = "diffusion_model.transformer_blocks.1.attn1.to_q"
    lora = {f"{name}.lora_A.weight": torch.randn(4, 64), f"{name}.lora_B.weight": torch.randn(64, 4)}
    changed, _ = host.comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    assert list(changed.patches) == [f"{name}.weight"]
    plain = sample(host, model)
    assert apart(sample(host, changed), plain) > 1e-3
    assert torch.equal(sample(host, model), plain)
    none, _ = host.comfy.sd.load_lora_for_models(model, None, lora, 0.0, 0.0)
    assert torch.equal(sample(host, none), plain)


def test_saved_model_loads_again(host, tmp_path):
    import dataclasses

    # Nothing in the tensors tells shift, position code and clip: they have to survive.
    params = dataclasses.replace(tiny.SANA, flow_shift=6.0, interpolation_scale=2.0, clamp_fp16=True, sample_size=16)
    first = host.sana.load_sana(tiny.save_sana(tmp_path / "first.safetensors", params))
    path = saved(host, first, tmp_path / "ComfyUI_00001_.safetensors")
    with safe_open(path, "pt") as file:
        assert all(key.startswith("model.diffusion_model.") for key in file.keys())
    again = host.sana.load_sana(path)
    assert again.model.model_config.params == params
    assert torch.equal(sample(host, again), sample(host, first))


def test_whole_checkpoint_feeds_all_three_loaders(host, model, clip, vae, tmp_path):
    path = saved(host, model, tmp_path / "whole.safetensors", clip, vae)
    assert torch.equal(sample(host, host.sana.load_sana(path)), sample(host, model))
    again = host.text.encode_prompt(host.text.load_text_encoder(path), PROMPT, True)
    assert torch.equal(again[0][0], host.text.encode_prompt(clip, PROMPT, True)[0][0])
    z = noise(1)
    assert torch.equal(host.vae.load_dcae(path).decode(z), vae.decode(z))


def test_patcher_can_be_made_again(model, clip, vae):
    for patcher in (model, clip.patcher, vae.patcher):
        function, arguments = patcher.cached_patcher_init
        again = function(*arguments, disable_dynamic=True)
        old, new = patcher.model.state_dict(), again.model.state_dict()
        assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)


def test_wrong_file_in_each_loader(host, weights):
    sana, gemma, dcae = host.sana.load_sana, host.text.load_text_encoder, host.vae.load_dcae
    for load, path, name in ((sana, weights.gemma, "Gemma 2"), (sana, weights.dcae, "DC-AE"),
                             (gemma, weights.sana, "Sana transformer"), (gemma, weights.dcae, "DC-AE"),
                             (dcae, weights.sana, "Sana transformer"), (dcae, weights.gemma, "Gemma 2")):
        with pytest.raises(ValueError, match=f"{path.name}.*{name}"):
            load(path)


def test_damaged_files(host, weights, tmp_path):
    key = "transformer_blocks.1.attn1.to_q.weight"
    for changes, message in (({key: None}, f"missing.*{key}"), ({"surprise.weight": torch.zeros(3)}, "unexpected.*surprise"),
                             ({key: torch.zeros(5, 5)}, f"shape.*{key}")):
        with pytest.raises(ValueError, match=message):
            host.sana.load_sana(tiny.save_sana(tmp_path / "bad.safetensors", **changes))
    with pytest.raises(ValueError, match="model.norm.weight"):
        host.text.load_text_encoder(tiny.save_gemma(tmp_path / "bad_gemma.safetensors", **{"model.norm.weight": None}))
    with pytest.raises(ValueError, match="weight_dtype"):
        host.sana.load_sana(weights.sana, "int3")


# Hosts with dynamic VRAM

def test_lazily_loaded_weights(host, weights, monkeypatch):
    """Newer hosts make layers without weights and assign the file's tensors: nothing may look at a weight before."""
    try:
        import comfy.memory_management as memory
    except ImportError:
        pytest.skip("this host has no dynamic VRAM")
    if not hasattr(memory, "aimdo_enabled"):
        pytest.skip("this host has no dynamic VRAM")
    monkeypatch.setattr(memory, "aimdo_enabled", True)
    monkeypatch.setattr(host.comfy.model_management, "WINDOWS", True, raising=False)  # elsewhere some hosts allocate
    core = tiny.sana().state_dict()
    config = host.sana.SanaConfig(tiny.SANA)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({})
    assert model.diffusion_model.proj_out.weight is None
    model.load_model_weights(dict(core), "", assign=True)
    loaded = model.diffusion_model.state_dict()
    assert loaded.keys() == core.keys() and all(torch.equal(loaded[key], core[key]) for key in core)

    vae = host.vae.load_dcae(weights.dcae)
    assert apart(vae.decode(noise(1)), (tiny.dcae().decode(noise(1)) / 2 + 0.5).clamp(0, 1).movedim(1, -1)) < 1e-5
    states, extra = host.text.encode_prompt(host.text.load_text_encoder(weights.gemma), PROMPT, True)[0]
    assert apart(states[:, :8], reference(PROMPT, True)[0][:, :8]) < 1e-5


# The loaders' lists

def test_lists_and_paths(host, weights, tmp_path, monkeypatch):
    import folder_paths

    models = tmp_path / "text_encoders"
    sharded = models / "gemma-sharded"
    sharded.mkdir(parents=True)
    (sharded / "model.safetensors.index.json").write_text("{}")
    (sharded / "model-00001-of-00002.safetensors").write_bytes(b"")
    (sharded / "tokenizer.model").write_bytes(b"x")
    (models / "one.safetensors").write_bytes(b"")
    pipelines = tmp_path / "diffusers"
    (pipelines / "Sana" / "text_encoder").mkdir(parents=True)
    (pipelines / "Half").mkdir()  # without this part
    (pipelines / "Half" / "model_index.json").write_text("{}")
    (pipelines / "Sana" / "model_index.json").write_text("{}")
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", {
        **folder_paths.folder_names_and_paths,
        "text_encoders": ([str(models)], folder_paths.supported_pt_extensions),
        "diffusers": ([str(pipelines)], ["folder"])})
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    files = host.files
    assert files.choices("text_encoders") == ["one.safetensors", "Sana", "gemma-sharded"]
    assert files.model_path("text_encoders", "gemma-sharded") == sharded
    assert files.model_path("text_encoders", "one.safetensors") == models / "one.safetensors"
    assert files.tokenizer_choices() == ["auto", "gemma-sharded/tokenizer.model"]
    for name in ("two.safetensors", "../diffusers/Sana", "/etc/hostname"):
        with pytest.raises(FileNotFoundError, match="no such model"):
            files.model_path("text_encoders", name)
    with pytest.raises(FileNotFoundError, match="no such tokenizer"):
        files.tokenizer_path("other.model")
    before = files.fingerprint(sharded)
    assert before == files.fingerprint(sharded)
    (sharded / "model-00001-of-00002.safetensors").write_bytes(b"more")
    assert before != files.fingerprint(sharded)


def test_nodes_have_help_and_tooltips(host):
    from sanacog.nodes import NODES
    from sanacog.nodes import sana as module

    schemas = [node.define_schema() for node in NODES]
    # Ids never change once shipped.
    assert {"SanaCogLoadSanaModel", "SanaCogLoadSanaTextEncoder", "SanaCogLoadDCAE", "SanaCogSanaTextEncode",
            "SanaCogEmptySanaLatent", "SanaCogFlowDPMSolver", "SanaCogSanaResolution"} <= {s.node_id for s in schemas}
    from pathlib import Path
    pack = Path(module.__file__).parents[1]
    for schema in schemas:
        assert schema.category.partition("/")[0] in ("Sana", "CogVideoX") and schema.description
        assert all(port.tooltip for port in schema.inputs + schema.outputs), schema.node_id
        assert (pack / "web" / "docs" / f"{schema.node_id}.md").is_file()
