"""Quantised files in the real host: read, turned back, refused, with LoRAs on them, saved again."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from sanacog.cogvideo_core import precision as cogvideo_precision
from sanacog.kernels import quant_layers
from sanacog.sana_core import precision as sana_precision

from . import tiny, tiny_cogvideox
from .sana.sana_model import apart, host, sample, saved, weights  # noqa: F401
from .cogvideox.video_model import sample as sample_video

LAYER = "transformer_blocks.1.ff.conv_inverted"
# Relative L2 of three steps with a random model, whose errors grow as no trained one's do.
LIMITS = {"int8": 0.06, "fp8": 0.12, "nvfp4": 0.6}


def as_bytes(entry):
    return torch.tensor(list(json.dumps(entry).encode()), dtype=torch.uint8)


def quantised_sana(kind, largest=None):
    return quant_layers.quantised(tiny.sana().state_dict(), kind, sana_precision.KEPT, largest)


def save(path, tensors, entries=None, params=tiny.SANA):
    from dataclasses import asdict

    told = quant_layers.to_metadata(entries) if entries else {}
    save_file({key: t.contiguous() for key, t in tensors.items()}, path, metadata={"config": json.dumps(asdict(params))} | told)
    return path


@pytest.fixture(params=["int8", "fp8", "nvfp4"])
def kind(request, host):
    """A format that this host knows."""
    from sanacog.host.compat import quantised_formats
    from sanacog.kernels.quant import FORMATS

    if FORMATS[request.param] not in quantised_formats():
        pytest.skip(f"this host does not know {request.param}")
    return request.param


@pytest.fixture(scope="module")
def plain(host, weights):
    return sample(host, host.sana.load_sana(weights.sana))


def stored(model, layer=LAYER):
    """The numbers that a layer of a loaded model holds."""
    weight = model.model.diffusion_model.get_submodule(layer).weight
    return weight._qdata if hasattr(weight, "_qdata") else weight


@pytest.mark.parametrize("told", ["in the metadata", "in tensors", "in tensors under a saver's prefix"])
def test_sana(host, plain, kind, tmp_path, told):
    tensors, entries = quantised_sana(kind, dict.fromkeys(quantised_sana("int8")[1], 30.0))
    if told == "in the metadata":
        path = save(tmp_path / "x.safetensors", tensors, entries)
    else:
        tensors = tensors | {f"{layer}.comfy_quant": as_bytes(entry) for layer, entry in entries.items()}
        prefix = "model.diffusion_model." if "prefix" in told else ""
        path = save(tmp_path / "x.safetensors", {prefix + key: t for key, t in tensors.items()})
    model = host.sana.load_sana(path)
    assert stored(model).dtype == tensors[f"{LAYER}.weight"].dtype
    assert stored(model, "transformer_blocks.1.attn2.to_k").dtype == torch.float32
    found = sample(host, model)
    # The same numbers as the host's own layers make of the file, turned back by us.
    back = sample(host, host.sana.load_sana(path, "fp32"))
    assert 1e-3 < apart(back, plain) < LIMITS[kind]
    # On a CPU int8 quantises the inputs too; the other formats are computed in full precision.
    assert apart(found, back) < (LIMITS["int8"] if kind == "int8" else 1e-4)


def test_computing_in_bf16(host, plain, kind, tmp_path, monkeypatch):
    """As on a GPU: weights that are not quantised are kept in bf16, and so are the activations."""
    monkeypatch.setattr(host.loading, "compute_dtype", lambda supported: torch.bfloat16)
    tensors, entries = quantised_sana(kind)
    model = host.sana.load_sana(save(tmp_path / "x.safetensors", tensors, entries))
    assert stored(model).dtype == tensors[f"{LAYER}.weight"].dtype
    assert stored(model, "transformer_blocks.1.attn2.to_k").dtype == torch.bfloat16
    assert apart(sample(host, model), plain) < LIMITS[kind] + 0.05


def test_cogvideox(host, kind, tmp_path):
    from sanacog.host.cogvideox.model import load_cogvideox

    network = tiny_cogvideox.transformer()
    tensors, entries = quant_layers.quantised(network.state_dict(), kind, cogvideo_precision.KEPT)
    path = save(tmp_path / "x.safetensors", tensors, entries, tiny_cogvideox.PARAMS)
    model = load_cogvideox(path)
    assert stored(model, "transformer_blocks.0.ff.net.2").dtype == tensors["transformer_blocks.0.ff.net.2.weight"].dtype
    found, back = sample_video(host, model), sample_video(host, load_cogvideox(path, "fp32"))
    assert apart(found, back) < (LIMITS["int8"] if kind == "int8" else 1e-4)
    exact = sample_video(host, load_cogvideox(tiny_cogvideox.save_transformer(tmp_path / "plain.safetensors")))
    assert 1e-3 < apart(back, exact) < LIMITS[kind]


def test_comfys_names(host, tmp_path):
    """A quantised file of ComfyUI's own CogVideoX: its scales are renamed with its weights."""
    from sanacog.cogvideo_core.checkpoint import from_canonical
    from sanacog.host.cogvideox.model import load_cogvideox

    tensors, entries = quant_layers.quantised(tiny_cogvideox.transformer().state_dict(), "fp8", cogvideo_precision.KEPT)
    named = from_canonical(tensors | {f"{layer}.comfy_quant": as_bytes(entry) for layer, entry in entries.items()}, "comfy")
    assert "blocks.1.ff_out.weight_scale" in named
    model = load_cogvideox(save(tmp_path / "comfy.safetensors", named, params=tiny_cogvideox.PARAMS))
    other = load_cogvideox(save(tmp_path / "diffusers.safetensors", tensors, entries, tiny_cogvideox.PARAMS))
    assert stored(model, "transformer_blocks.0.attn1.to_q").dtype == torch.float8_e4m3fn
    assert torch.equal(sample_video(host, model), sample_video(host, other))


def test_older_and_bare_fp8(host, plain, tmp_path):
    bare, scaled = {}, {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for key, tensor in tiny.sana().state_dict().items():
        bare[key] = tensor.to(torch.float8_e4m3fn) if key.endswith("weight") or key.endswith("table") else tensor
        linear = key.endswith(".weight") and tensor.ndim == 2
        scaled[key] = (tensor / 2e-3).to(torch.float8_e4m3fn) if linear else tensor
        if linear:
            scaled[key.removesuffix("weight") + "scale_weight"] = torch.tensor(2e-3)
    for name, tensors in (("bare", bare), ("scaled", scaled)):
        path = save(tmp_path / f"{name}.safetensors", tensors)
        model = host.sana.load_sana(path)
        assert stored(model).dtype == torch.float8_e4m3fn
        found = sample(host, model)
        assert 1e-3 < apart(found, plain) < 0.2
        assert apart(found, sample(host, host.sana.load_sana(path, "fp32"))) < 1e-4


@pytest.mark.parametrize("blocks", ["Q4_0", "Q8_0"])
def test_cogvideox_in_ggml_blocks(host, tmp_path, caplog, blocks):
    """As ComfyUI-CogVideoXWrapper's "GGUF" files have them: every Linear but the kept ones, the rest in fp16."""
    from sanacog.host.cogvideox.model import load_cogvideox

    from ..unit.test_ggml_blocks import blocks_of, numbers_of

    params = replace(tiny_cogvideox.params_of("image", "1.5"), text_embed_dim=64)
    file, plain = {}, {}
    for key, tensor in tiny_cogvideox.transformer(params).state_dict().items():
        layer = key.removesuffix(".weight")
        if layer != key and tensor.ndim == 2 and layer.startswith("transformer_blocks"):
            file[f"{layer}.{blocks}_qweight"] = blocks_of(tensor, blocks)
            plain[key] = numbers_of(file[f"{layer}.{blocks}_qweight"], blocks).bfloat16()
        else:
            file[key] = plain[key] = tensor.half()
    file, plain = (save(tmp_path / f"{name}_I2V.safetensors", tensors, params=params)
                   for name, tensors in (("GGUF", file), ("plain", plain)))
    for weight_dtype in ("default", "fp32", "fp8_e4m3fn"):
        caplog.clear()
        caplog.set_level("INFO")
        found, wanted = (load_cogvideox(path, weight_dtype) for path in (file, plain))
        assert torch.equal(stored(found, "transformer_blocks.1.ff.net.2"), stored(wanted, "transformer_blocks.1.ff.net.2")) or (
            weight_dtype == "fp32")  # which keeps what bf16 would round
        assert apart(sample_video(host, found), sample_video(host, wanted)) < (1e-6 if weight_dtype != "fp32" else 2e-2)
        said = "weights of 16 layers turned back"
        assert said in caplog.text and ("takes half" in caplog.text) == (weight_dtype == "default")


def test_fp8_with_a_scale_a_row(host, plain, tmp_path):
    file, back = {}, {}
    for key, tensor in tiny.sana().state_dict().items():
        file[key] = back[key] = tensor
        if key.endswith(".weight") and tensor.ndim == 2 and "transformer_blocks" in key:
            scale = tensor.abs().amax(1, keepdim=True) / 448
            file[key] = (tensor / scale).to(torch.float8_e4m3fn)
            file[key.removesuffix("weight") + "weight_scale"] = scale
            back[key] = file[key].float() * scale
    found = sample(host, host.sana.load_sana(save(tmp_path / "rows.safetensors", file), "fp32"))
    assert apart(found, sample(host, host.sana.load_sana(save(tmp_path / "back.safetensors", back)))) < 1e-4
    assert 1e-3 < apart(found, plain) < 0.2


def test_stacked_layouts_are_turned_back(host, plain, tmp_path):
    from sanacog.sana_core.checkpoint import from_canonical

    nvlabs = from_canonical(tiny.sana().state_dict(), "nvlabs")
    tensors = {key: t.flatten(1) if t.ndim == 4 and t.shape[2:] == (1, 1) and "mlp" in key else t for key, t in nvlabs.items()}
    tensors, entries = quant_layers.quantised(tensors, "fp8", ((r"embedder|final_layer|t_block", "outside the blocks, here"),))
    assert "blocks.0.attn.qkv" in entries
    model = host.sana.load_sana(save(tmp_path / "x.safetensors", tensors, entries))
    assert stored(model).dtype == torch.bfloat16 or stored(model).dtype == torch.float32
    assert 1e-3 < apart(sample(host, model), plain) < LIMITS["fp8"]


def test_formats_that_this_host_does_not_read(host, tmp_path, monkeypatch):
    from sanacog.host import loading

    tensors, entries = quantised_sana("nvfp4")
    path = save(tmp_path / "x.safetensors", tensors, entries)
    monkeypatch.setattr(loading, "quantised_formats", lambda: {"float8_e4m3fn"})
    with pytest.raises(ValueError, match=r"x\.safetensors.*nvfp4.*ComfyUI 0\.8 and newer.*this is ComfyUI \d.*bf16"):
        host.sana.load_sana(path)
    host.sana.load_sana(path, "bf16")
    entries = {layer: {"format": "int3_dreams"} for layer in entries}
    path = save(tmp_path / "y.safetensors", quantised_sana("int8")[0], entries)
    with pytest.raises(ValueError, match="int3_dreams.*no ComfyUI known here"):
        host.sana.load_sana(path)
    with pytest.raises(ValueError, match="y.safetensors.*int3_dreams.*turned back"):
        host.sana.load_sana(path, "bf16")


def test_damaged_quantised_file(host, tmp_path):
    tensors, entries = quantised_sana("fp8")
    path = save(tmp_path / "x.safetensors", {key: t for key, t in tensors.items() if key != f"{LAYER}.weight"}, entries)
    with pytest.raises(ValueError, match=f"missing {LAYER}.weight"):
        host.sana.load_sana(path)


def test_lora_on_quantised_weights(host, kind, tmp_path):
    from sanacog.host.lora import apply_lora

    tensors, entries = quantised_sana(kind)
    model = host.sana.load_sana(save(tmp_path / "x.safetensors", tensors, entries))
    before = sample(host, model)
    stem = f"transformer.{LAYER}"
    generator = torch.Generator().manual_seed(3)
    down, up = torch.randn(4, 64, generator=generator), torch.randn(320, 4, generator=generator)
    save_file({f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}, tmp_path / "lora.safetensors")
    ours, _ = apply_lora(tmp_path / "lora.safetensors", model, strength_model=0.3)
    stock, _ = host.comfy.sd.load_lora_for_models(model, None, {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up},
                                                  0.3, 0.0)
    changed = sample(host, ours)
    # What a full-precision model with the same numbers gives; the host quantises the changed weight once more.
    back = host.sana.load_sana(tmp_path / "x.safetensors", "fp32")
    wanted = sample(host, apply_lora(tmp_path / "lora.safetensors", back, strength_model=0.3)[0])
    assert apart(changed, before) > 0.05 and apart(changed, wanted) < LIMITS[kind]
    assert apart(changed, wanted) < apart(changed, before) / 2
    assert torch.equal(sample(host, stock), changed)
    assert torch.equal(sample(host, model), before)


def test_saved_by_the_host_and_loaded_again(host, kind, tmp_path):
    tensors, entries = quantised_sana(kind)
    model = host.sana.load_sana(save(tmp_path / "x.safetensors", tensors, entries))
    again = host.sana.load_sana(saved(host, model, tmp_path / "ComfyUI_00001_.safetensors"))
    assert stored(again).dtype == stored(model).dtype
    assert torch.equal(sample(host, again), sample(host, model))


def test_the_host_computes_what_the_bench_reckons_with(host, kind, tmp_path):
    """One call of the network, its inputs quantised where this host does so on a CPU: bench/quant.py computes the same."""
    from sanacog.bench.quant import as_kept

    tensors, entries = quantised_sana(kind)
    network = host.sana.load_sana(save(tmp_path / "x.safetensors", tensors, entries)).model.diffusion_model
    x, t, context = torch.randn(1, 32, 4, 6), torch.tensor([500.0]), torch.randn(1, 7, tiny.CAPTION)
    reckoned = as_kept(tiny.sana(), kind, sana_precision.KEPT, inputs=kind == "int8")
    exact = tiny.sana()
    assert apart(network(x, t, context), reckoned(x, t, context)) < (3e-3 if kind == "int8" else 1e-5)
    assert apart(network(x, t, context), exact(x, t, context)) > 4e-3


def test_lazily_loaded_weights(host, kind, monkeypatch):
    """Hosts with dynamic VRAM make layers without weights and assign the file's tensors."""
    memory = pytest.importorskip("comfy.memory_management", reason="this host has no dynamic VRAM")
    if not hasattr(memory, "aimdo_enabled"):
        pytest.skip("this host has no dynamic VRAM")
    from sanacog.bench.quant import as_kept
    from sanacog.host.compat import hand_over_layers

    monkeypatch.setattr(memory, "aimdo_enabled", True)
    monkeypatch.setattr(host.comfy.model_management, "WINDOWS", True, raising=False)  # elsewhere some hosts allocate
    config = host.sana.SanaConfig(tiny.SANA)
    config.set_inference_dtype(torch.float32, torch.float32)
    state_dict = hand_over_layers(config, *quantised_sana(kind))
    model = config.get_model({})
    model.load_model_weights(state_dict, "", assign=True)
    torch.manual_seed(3)
    x, t, context = torch.randn(1, 32, 4, 6), torch.tensor([500.0]), torch.randn(1, 7, tiny.CAPTION)
    reckoned = as_kept(tiny.sana(), kind, sana_precision.KEPT, inputs=kind == "int8")
    assert apart(model.diffusion_model(x, t, context), reckoned(x, t, context)) < (3e-3 if kind == "int8" else 1e-5)
