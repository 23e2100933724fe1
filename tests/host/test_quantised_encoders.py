"""Text encoders in the host's quantised forms: scaled fp8, entries in the metadata, and entries as tensors."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from sanacog.kernels.quant import dequantise, quantise

from . import tiny, tiny_cogvideox

PROMPT = "a large red circle on a blue background"
FORMS = ("scaled_fp8", "metadata", "comfy_quant")


@pytest.fixture(scope="module")
def host(comfyui_path):
    tiny.import_host(comfyui_path)
    import nodes

    from sanacog.host import compat
    from sanacog.host.cogvideox import text as t5
    from sanacog.host.sana import text as gemma

    with torch.inference_mode():
        yield SimpleNamespace(nodes=nodes, compat=compat, gemma=gemma.load_text_encoder, t5=t5.load_t5)


def encoder(kind):
    """(weights in transformers' names, what stands before them in a file, whether a layer is quantised)."""
    if kind == "gemma":
        return tiny.gemma_weights(), "model.", lambda layer: layer.endswith("_proj")
    return tiny_cogvideox.t5_weights(), "", lambda layer: ".layer." in layer and "norm" not in layer and "bias" not in layer


def save(kind, path, form, number_type="fp8", dtype=torch.float32):
    """A quantised file; returns what it says, as plain weights."""
    weights, prefix, is_layer = encoder(kind)
    plain, tensors, entries = {}, {"spiece_model": torch.frombuffer(bytearray(tiny.sentencepiece_model()), dtype=torch.uint8)}, {}
    for key, t in weights.items():
        layer = key.removesuffix(".weight")
        if not is_layer(layer):
            plain[key] = tensors[prefix + key] = t.to(dtype)
            continue
        parts, entry = quantise(t, number_type)
        plain[key] = dequantise(parts, entry)
        if form == "scaled_fp8":
            parts["scale_weight"] = parts.pop("weight_scale")
            parts["scale_input"] = torch.ones(())
        else:
            entries[prefix + layer] = entry
            if form == "comfy_quant":
                parts["comfy_quant"] = torch.tensor(list(json.dumps(entry).encode()), dtype=torch.uint8)
        tensors |= {f"{prefix}{layer}.{leaf}": t for leaf, t in parts.items()}
    if form == "scaled_fp8":
        tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    metadata = {"config": json.dumps({"max_text_seq_length": tiny_cogvideox.TOKENS})}
    if form == "metadata":
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": entries})
    save_file({key: t.contiguous() for key, t in tensors.items()}, path, metadata=metadata)
    return {key: t.float() for key, t in plain.items()}


def states(host, kind, clip):
    [[states, extra]] = host.nodes.CLIPTextEncode().encode(clip, PROMPT)[0]
    return states


def plain_clip(host, kind, path, weights):
    """The same weights, unquantised."""
    tensors = {encoder(kind)[1] + key: t.contiguous() for key, t in weights.items()}
    tensors["spiece_model"] = torch.frombuffer(bytearray(tiny.sentencepiece_model()), dtype=torch.uint8)
    save_file(tensors, path, metadata={"config": json.dumps({"max_text_seq_length": tiny_cogvideox.TOKENS})})
    return getattr(host, kind)(path)


def apart(a, b):
    return float((a - b).norm() / b.norm())


def eight_bit(clip):
    """Bytes of what is kept in 8 bits."""
    tensors = [getattr(t, "_qdata", t) for t in clip.cond_stage_model.parameters()]
    return sum(t.numel() for t in tensors if t.dtype.itemsize == 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["gemma", "t5"])
def test_fp8_forms(host, tmp_path, kind, form, dtype):
    weights = save(kind, tmp_path / "quantised.safetensors", form, dtype=dtype)
    clip = getattr(host, kind)(tmp_path / "quantised.safetensors")
    layers = [key for key in weights if encoder(kind)[2](key.removesuffix(".weight"))]
    assert eight_bit(clip) == sum(weights[key].numel() for key in layers)
    wanted = states(host, kind, plain_clip(host, kind, tmp_path / "plain.safetensors", weights))
    assert apart(states(host, kind, clip), wanted) < (1e-5 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize("number_type", ["int8", "nvfp4"])
def test_formats_that_a_host_may_not_read_are_turned_back_there(host, tmp_path, number_type):
    """What is wanted is the right text in any case; memory is saved where the host has the format."""
    for kind in ("gemma", "t5"):
        weights = save(kind, tmp_path / "quantised.safetensors", "comfy_quant", number_type)
        clip = getattr(host, kind)(tmp_path / "quantised.safetensors")
        wanted = states(host, kind, plain_clip(host, kind, tmp_path / "plain.safetensors", weights))
        # Where a host multiplies in int8 it rounds the layers' inputs as well; wrong weights would be 1 and more apart.
        assert apart(states(host, kind, clip), wanted) < (0.1 if number_type == "int8" else 1e-2)


@pytest.mark.parametrize("name, tolerance", [("fp32", 1e-5), ("bf16", 2e-2), ("fp8_e4m3fn", 0.2)])
def test_weight_dtype_turns_them_back(host, tmp_path, name, tolerance):
    weights = save("gemma", tmp_path / "quantised.safetensors", "scaled_fp8")
    clip = host.gemma(tmp_path / "quantised.safetensors", None, name)
    wanted = states(host, "gemma", plain_clip(host, "gemma", tmp_path / "plain.safetensors", weights))
    assert apart(states(host, "gemma", clip), wanted) < tolerance
    assert bool(eight_bit(clip)) == name.startswith("fp8")


def test_entries_that_cannot_be_read(host, tmp_path):
    for kind in ("gemma", "t5"):
        weights, prefix, is_layer = encoder(kind)
        layer = next(key.removesuffix(".weight") for key in weights if is_layer(key.removesuffix(".weight")))
        tensors = {prefix + key: t for key, t in weights.items()}
        tensors |= {f"{prefix}{layer}.comfy_quant": torch.tensor(list(b'{"format": "int2_of_tomorrow"}'), dtype=torch.uint8),
                    "spiece_model": torch.frombuffer(bytearray(tiny.sentencepiece_model()), dtype=torch.uint8)}
        save_file(tensors, tmp_path / "strange.safetensors")
        with pytest.raises(ValueError, match="strange.safetensors: .*int2_of_tomorrow.*Update ComfyUI"):
            getattr(host, kind)(tmp_path / "strange.safetensors")
        save_file({prefix + key: t for key, t in weights.items()}, tmp_path / "bad.safetensors",
                  metadata={"_quantization_metadata": "{"})
        with pytest.raises(ValueError, match="bad.safetensors: its _quantization_metadata cannot be read"):
            getattr(host, kind)(tmp_path / "bad.safetensors")


FOREIGN = {"bitsandbytes, 4 bit": (".weight", ".weight.absmax", ".weight.quant_state.bitsandbytes__nf4"),
           "bitsandbytes, 8 bit": (".weight", ".SCB"), "quanto": (".weight._data", ".weight._scale"), "SDNQ": (".weight", ".scale"),
           "torchao": ("._weight_qdata", "._weight_scale"), "GPTQ, AWQ": (".qweight", ".qzeros", ".scales"),
           "Nunchaku": (".qweight", ".wscales")}


@pytest.mark.parametrize("maker", FOREIGN)
@pytest.mark.parametrize("kind", ["gemma", "t5"])
def test_other_quantisers_are_named(host, tmp_path, kind, maker):
    weights, prefix, is_layer = encoder(kind)
    tensors = {}
    for key, t in weights.items():
        layer = key.removesuffix(".weight")
        tensors |= {prefix + layer + leaf: torch.zeros(4, 1) for leaf in FOREIGN[maker]} if is_layer(layer) else {prefix + key: t}
    save_file(tensors, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=f"foreign.safetensors: .*quantised by {maker}.*Take ") as error:
        getattr(host, kind)(tmp_path / "foreign.safetensors")
    assert "Text Encoder" not in str(error.value) and "again" not in str(error.value)


@pytest.mark.parametrize("kind, own", [("gemma", "Load Sana Text Encoder"), ("t5", "Load CogVideoX Text Encoder")])
def test_no_loader_advises_itself(host, tmp_path, kind, own):
    weights, prefix, _ = encoder(kind)
    for gone in weights:
        save_file({prefix + key: t for key, t in weights.items() if key != gone}, tmp_path / "less.safetensors")
        with pytest.raises(ValueError, match="less.safetensors: ") as error:
            getattr(host, kind)(tmp_path / "less.safetensors")
        assert own not in str(error.value), gone


@pytest.mark.parametrize("before", ["module.", "base_model.model.", "text_encoder."])
@pytest.mark.parametrize("kind", ["gemma", "t5"])
def test_prefixes_of_trainers(host, tmp_path, kind, before):
    weights, prefix, _ = encoder(kind)
    plain = plain_clip(host, kind, tmp_path / "plain.safetensors", weights)
    tensors = {before + prefix + key: t for key, t in weights.items()}
    tensors["spiece_model"] = torch.frombuffer(bytearray(tiny.sentencepiece_model()), dtype=torch.uint8)
    save_file(tensors, tmp_path / "wrapped.safetensors", metadata={"config": json.dumps({"max_text_seq_length": tiny_cogvideox.TOKENS})})
    clip = getattr(host, kind)(tmp_path / "wrapped.safetensors")
    assert torch.equal(states(host, kind, clip), states(host, kind, plain))


@pytest.mark.parametrize("kind", ["gemma", "t5"])
def test_saved_by_the_stock_node_and_loaded_again(host, tmp_path, monkeypatch, kind):
    import folder_paths
    from comfy_extras.nodes_model_merging import CLIPSave

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    save(kind, tmp_path / "quantised.safetensors", "scaled_fp8")
    clip = getattr(host, kind)(tmp_path / "quantised.safetensors")
    CLIPSave().save(clip, "clip/ComfyUI")
    [file] = (tmp_path / "clip").iterdir()
    again = getattr(host, kind)(file)
    assert apart(states(host, kind, again), states(host, kind, clip)) < 1e-5
