"""T5 and Gemma-2 from GGUF files, which the package gguf writes here with llama.cpp's names, changes and quantisers."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from . import tiny, tiny_cogvideox

gguf = pytest.importorskip("gguf")
PROMPT = "a large red circle on a blue background"
# transformers' names -> llama.cpp's, in the words of gguf's own table (gguf.get_tensor_name_map), which is not what is read.
ARCHITECTURE = {"t5": (gguf.MODEL_ARCH.T5ENCODER, "t5encoder"), "gemma": (gguf.MODEL_ARCH.GEMMA2, "gemma2")}


@pytest.fixture(scope="module")
def host(comfyui_path):
    tiny.import_host(comfyui_path)
    import folder_paths
    import nodes

    from sanacog.host import files
    from sanacog.host.cogvideox import text as t5
    from sanacog.host.sana import text as gemma

    with torch.inference_mode():
        yield SimpleNamespace(nodes=nodes, files=files, folder_paths=folder_paths, gemma=gemma.load_text_encoder, t5=t5.load_t5)


def weights_of(kind):
    """By transformers' names."""
    return ({f"model.{key}": t for key, t in tiny.gemma_weights().items()} if kind == "gemma" else tiny_cogvideox.t5_weights())


def write(kind, path, quantiser, **changes):
    """A GGUF file with its tokenizer beside it; returns what it says as plain weights, by transformers' names."""
    architecture, name = ARCHITECTURE[kind]
    names = gguf.get_tensor_name_map(architecture, 2)
    writer, plain = gguf.GGUFWriter(path, changes.pop("architecture", name)), {}
    for key, t in (weights_of(kind) | changes).items():
        if t is None:
            continue
        number = t + 1 if kind == "gemma" and key.endswith("norm.weight") else t
        numbers, target = number.numpy(), names.get_name(key, (".weight", ".bias")) or key
        type = quantiser if t.ndim == 2 and t.shape[1] % 32 == 0 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(numbers, type)
        writer.add_tensor(target, data, raw_dtype=type)
        plain[key] = torch.from_numpy(gguf.quants.dequantize(data, type).copy()) - (number - t)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (path.parent / "tokenizer.model").write_bytes(tiny.sentencepiece_model())
    if kind == "t5":
        (path.parent / "config.json").write_text(json.dumps({"max_text_seq_length": tiny_cogvideox.TOKENS}))
    return plain


def states(host, clip):
    [[found, _]] = host.nodes.CLIPTextEncode().encode(clip, PROMPT)[0]
    return found


def apart(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("quantiser", ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q4_0"])
@pytest.mark.parametrize("kind", ["t5", "gemma"])
def test_states(host, tmp_path, kind, quantiser):
    plain = write(kind, tmp_path / "encoder.gguf", gguf.GGMLQuantizationType[quantiser])
    dtype = {"F32": torch.float32, "F16": torch.float16}.get(quantiser, torch.bfloat16)
    file = {key: t.to(torch.float32 if kind == "gemma" and "norm" in key else dtype) for key, t in plain.items()}
    save_file({key: t.contiguous() for key, t in file.items()}, tmp_path / "plain.safetensors")
    found, wanted = (getattr(host, kind)(tmp_path / name) for name in ("encoder.gguf", "plain.safetensors"))
    assert apart(states(host, found), states(host, wanted)) < (2e-3 if kind == "gemma" else 1e-6)
    types = {t.dtype for key, t in found.cond_stage_model.named_parameters() if t.ndim == 2}
    assert types == {dtype}


def test_the_list_has_them(host, tmp_path, monkeypatch):
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "encoder.gguf").touch()
    monkeypatch.setitem(host.folder_paths.folder_names_and_paths, "text_encoders", ([str(tmp_path)], {".safetensors"}))
    assert host.files.choices("text_encoders") == ["t5/encoder.gguf"]
    assert host.files.model_path("text_encoders", "t5/encoder.gguf") == tmp_path / "t5" / "encoder.gguf"


def test_refused(host, tmp_path, monkeypatch):
    F16, path = gguf.GGMLQuantizationType.F16, tmp_path / "x.gguf"
    write("t5", path, F16, architecture="sana")
    with pytest.raises(ValueError, match="x.gguf: a GGUF file of 'sana'.*T5.*Gemma-2.*safetensors"):
        host.t5(path)
    write("t5", path, F16, **{"dec.blk.0.attn_q.weight": torch.zeros(4, 32)})
    with pytest.raises(ValueError, match="x.gguf: .*dec.blk.0.attn_q.weight, which no such text encoder has.*encoder alone"):
        host.t5(path)
    write("t5", path, F16, **{"encoder.final_layer_norm.weight": None})
    with pytest.raises(ValueError, match="x.gguf: not a whole T5 v1.1 encoder: missing.*final_layer_norm"):
        host.t5(path)
    write("gemma", path, F16)
    with pytest.raises(ValueError, match="x.gguf: .*Gemma"):
        host.t5(path)
    whole = path.read_bytes()
    for cut in (4, 20, len(whole) // 2, len(whole) - 200):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="x.gguf: a damaged GGUF file.*Get it again"):
            host.gemma(path)
    path.write_bytes(whole)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.model"):
        host.gemma(path)
    with pytest.raises(ValueError, match=re.escape("pip install gguf")):
        monkeypatch.setitem(sys.modules, "gguf", None)
        host.gemma(path)
