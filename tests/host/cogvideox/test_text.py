"""T5 as the host's CLIP, on random tiny weights: the states of transformers' T5EncoderModel."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from .. import tiny, tiny_cogvideox
from ..tiny_cogvideox import TEXT_WIDTH, TOKENS

PROMPT = "a large red circle on a blue background"
PROMPTS = [PROMPT, "", "一只猫 🐈‍⬛", "word " * 10_000]


@pytest.fixture(scope="module")
def host(comfyui_path):
    tiny.import_host(comfyui_path)
    import comfy.sd
    import comfy.text_encoders.sd3_clip
    import folder_paths
    import nodes

    from sanacog.host.cogvideox import text as t5

    with torch.inference_mode():  # as the host runs its nodes
        yield SimpleNamespace(comfy=comfy, nodes=nodes, folder_paths=folder_paths, load=t5.load_t5, t5=t5)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_cogvideox.save_t5(tmp_path_factory.mktemp("weights") / "t5.safetensors")


@pytest.fixture(scope="module")
def clip(host, path):
    return host.load(path)


def reference(weights):
    """transformers' T5EncoderModel with these weights."""
    vocabulary, width = weights["shared.weight"].shape
    config = T5Config(vocab_size=vocabulary, d_model=width, d_kv=16, d_ff=96, num_layers=2, num_heads=2,
                      feed_forward_proj="gated-gelu")
    model = T5EncoderModel(config).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all("embed_tokens" in key for key in missing)
    return model


def padded(ids, length=TOKENS):
    return (ids[: length - 1] + [1] + [0] * length)[:length]


def ids_of(text):
    """What the embedded tokenizer makes of a text."""
    import sentencepiece

    return padded(sentencepiece.SentencePieceProcessor(model_proto=tiny.sentencepiece_model()).encode(text))


def encode(host, clip, text):
    """What the stock text node gives."""
    [[states, extra]] = host.nodes.CLIPTextEncode().encode(clip, text)[0]
    assert extra.get("pooled_output") is None and "attention_mask" not in extra
    return states


def apart(a, b):
    """Relative L2 distance."""
    assert a.shape == b.shape
    return float((a - b).norm() / b.norm())


# Tokens and states

@pytest.mark.parametrize("text", PROMPTS)
def test_states_equal_transformers(host, clip, text):
    states = encode(host, clip, text)
    assert states.shape == (1, TOKENS, TEXT_WIDTH)
    wanted = reference(tiny_cogvideox.t5_weights())(torch.tensor([ids_of(text)])).last_hidden_state  # no mask
    assert apart(states, wanted) < 1e-5


@pytest.fixture(scope="module")
def released(host, tmp_path_factory):
    """A CLIP with the released vocabulary, so the host's own tokenizer; its file has no config."""
    path = tmp_path_factory.mktemp("released") / "t5xxl.safetensors"
    save_file(tiny_cogvideox.t5_weights(vocabulary=32128), path)
    return host.load(path)


@pytest.mark.parametrize("text", PROMPTS)
def test_released_vocabulary(host, released, text):
    from pathlib import Path

    folder = Path(host.comfy.text_encoders.sd3_clip.__file__).parent / "t5_tokenizer"
    ids = T5TokenizerFast.from_pretrained(folder)(text, padding="max_length", max_length=226, truncation=True)["input_ids"]
    assert [token for token, _ in released.tokenize(text)["t5xxl"][0]] == ids
    states = encode(host, released, text)
    wanted = reference(tiny_cogvideox.t5_weights(vocabulary=32128))(torch.tensor([ids])).last_hidden_state
    assert states.shape == (1, 226, TEXT_WIDTH) and apart(states, wanted) < 1e-5


def test_brackets_are_weights(host, clip):
    """Of a bracket's tokens the state goes on from that of an empty prompt at the same place: 1.25 times as far."""
    text, plain = "a (large:1.25) red circle", "a large red circle"
    row = clip.tokenize(text)["t5xxl"][0]
    weights = torch.tensor([weight for _, weight in row])
    ids = [token for token, _ in row]
    assert set(weights.tolist()) == {1.0, 1.25}
    assert {weight for _, weight in clip.tokenize("(a) b")["t5xxl"][0]} == {1.0, 1.1}
    network = reference(tiny_cogvideox.t5_weights())
    states, empty = (network(torch.tensor([given])).last_hidden_state for given in (ids, ids_of("")))
    assert apart(encode(host, clip, text), empty + weights[:, None] * (states - empty)) < 1e-5
    assert apart(encode(host, clip, text), encode(host, clip, plain)) > 1e-3


@pytest.mark.parametrize("text", ["a (large:1.3) red ((circle))", "a sign (left)"])
def test_brackets_as_text(host, path, text):
    """As transformers' tokenizer reads them, which diffusers gives the prompt as it stands."""
    clip = host.load(path, brackets="text")
    row = clip.tokenize(text)["t5xxl"][0]
    assert [token for token, _ in row] == ids_of(text) and {weight for _, weight in row} == {1.0}
    assert clip.clone().tokenize(text) == clip.tokenize(text)
    assert clip.tokenize("\\(left\\)") == clip.tokenize("(left)")
    wanted = reference(tiny_cogvideox.t5_weights())(torch.tensor([ids_of(text)])).last_hidden_state
    assert apart(encode(host, clip, text), wanted) < 1e-5
    with pytest.raises(ValueError, match="brackets is 'off': choose one of weights, text"):
        host.load(path, brackets="off")


def test_long_prompts_say_so(clip, caplog):
    with caplog.at_level(logging.INFO):
        clip.tokenize("circle " * 5)
        assert "cut off" not in caplog.text
        count = len(clip.tokenizer.t5xxl.tokenizer.encode("circle " * 500))
        row = clip.tokenize("circle " * 500)["t5xxl"][0]
    assert f"the last {count + 1 - TOKENS} of this prompt are cut off" in caplog.text
    assert len(row) == TOKENS and row[-1] == (1, 1.0)


def test_always_as_many_tokens(clip):
    for options in ({"t5xxl_min_length": 100}, {"t5xxl_min_padding": 50}):  # T5TokenizerOptions
        for text in (PROMPT, "word " * 100):
            assert clip.tokenize(text, tokenizer_options=options) == clip.tokenize(text)
    row = clip.tokenize(PROMPT, return_word_ids=True)["t5xxl"][0]
    assert len(row) == TOKENS and {len(token) for token in row} == {3}
    assert clip.tokenizer.untokenize(clip.tokenize(PROMPT)["t5xxl"][0][:1])[0][0] == row[0][:2]


def test_weights_are_the_hosts(host, clip):
    """A weighted token's state goes that far from the one of an empty prompt at its place; the others stay."""
    weighted, plain, empty = (encode(host, clip, text)[0] for text in ("a (red:1.5) circle", "a red circle", ""))
    row = clip.tokenize("a (red:1.5) circle")["t5xxl"][0]
    assert [token for token, _ in row] == [token for token, _ in clip.tokenize("a red circle")["t5xxl"][0]]
    heavy = torch.tensor([weight != 1.0 for _, weight in row])
    assert 0 < heavy.sum() < 8
    assert apart(weighted[~heavy], plain[~heavy]) < 1e-5
    assert apart(weighted[heavy], (plain + 0.5 * (plain - empty))[heavy]) < 1e-5
    assert clip.tokenize("\\(red\\)") != clip.tokenize("(red)")
    assert [token for token, _ in clip.tokenize("\\(red\\)")["t5xxl"][0]] == ids_of("(red)")


# Types

def test_fp16_storage_is_computed_in_fp32(host, tmp_path):
    weights = tiny_cogvideox.t5_weights()
    for i in range(2):  # T5-XXL's feed-forward overflows in fp16
        weights[f"encoder.block.{i}.layer.1.DenseReluDense.wo.weight"] *= 6000
    half = {key: t.half() for key, t in weights.items()}
    clip = host.load(tiny_cogvideox.save_t5(tmp_path / "half.safetensors", **half))
    assert {p.dtype for p in clip.cond_stage_model.t5xxl.transformer.parameters()} == {torch.float16}
    states = encode(host, clip, PROMPT)
    out = reference({key: t.float() for key, t in half.items()})(torch.tensor([ids_of(PROMPT)]), output_hidden_states=True)
    assert out.hidden_states[1].abs().max() > torch.finfo(torch.float16).max
    assert apart(states, out.last_hidden_state) < 1e-5


def test_fp8_files(host, clip, tmp_path):
    weights = tiny_cogvideox.t5_weights()
    eight = {key: t.to(torch.float8_e4m3fn) for key, t in weights.items()}
    plain = host.load(tiny_cogvideox.save_t5(tmp_path / "fp8.safetensors", **eight))
    assert torch.float8_e4m3fn in {p.dtype for p in plain.cond_stage_model.parameters()}
    wanted = reference({key: t.float() for key, t in eight.items()})(torch.tensor([ids_of(PROMPT)])).last_hidden_state
    assert apart(encode(host, plain, PROMPT), wanted) < 1e-4


def test_scaled_fp8_files(host, clip, tmp_path):
    weights, scaled = tiny_cogvideox.t5_weights(), {}
    for key, t in weights.items():
        if ".layer." in key and "norm" not in key and "bias" not in key:
            scale = t.abs().max() / 100
            scaled[key] = (t / scale).to(torch.float8_e4m3fn)
            scaled[key.replace(".weight", ".scale_weight")] = scale
            weights[key] = scaled[key].float() * scale
    scaled["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    file = tiny_cogvideox.save_t5(tmp_path / "scaled.safetensors", **scaled)
    states = encode(host, host.load(file), PROMPT)
    assert apart(states, reference(weights)(torch.tensor([ids_of(PROMPT)])).last_hidden_state) < 1e-3


# Files

def saved(host, clip, folder, monkeypatch):
    """What the stock CLIPSave writes."""
    from comfy_extras.nodes_model_merging import CLIPSave

    monkeypatch.setattr(host.folder_paths, "get_output_directory", lambda: str(folder))
    CLIPSave().save(clip, "clip/ComfyUI")
    [file] = (folder / "clip").iterdir()
    return file


def test_saved_clip_loads_again(host, clip, tmp_path, monkeypatch):
    file = saved(host, clip, tmp_path, monkeypatch)
    assert {"shared.weight", "spiece_model", "max_text_seq_length"} < load_file(file).keys()
    assert torch.equal(encode(host, host.load(file), PROMPT), encode(host, clip, PROMPT))


def test_released_clip_saves_weights_alone(host, released, tmp_path, monkeypatch):
    file = saved(host, released, tmp_path, monkeypatch)
    assert load_file(file).keys() - {"logit_scale"} == tiny_cogvideox.t5_weights().keys()
    assert torch.equal(encode(host, host.load(file), PROMPT), encode(host, released, PROMPT))


def test_whole_checkpoint(host, clip, tmp_path):
    tensors = {f"text_encoders.{key}": t.contiguous() for key, t in clip.get_sd().items()}
    tensors |= {"model.diffusion_model.proj_out.weight": torch.zeros(2), "vae.encoder.x": torch.zeros(2)}
    save_file(tensors, tmp_path / "whole.safetensors")
    assert torch.equal(encode(host, host.load(tmp_path / "whole.safetensors"), PROMPT), encode(host, clip, PROMPT))


def test_sharded_pipeline(host, released, tmp_path):
    """A released pipeline: two shards, the embedding under its second name too, a config with no word on the length."""
    weights = tiny_cogvideox.t5_weights(vocabulary=32128)
    weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
    folder, names = tmp_path / "CogVideoX" / "text_encoder", sorted(weights)
    folder.mkdir(parents=True)
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {name: files[i % 2] for i, name in enumerate(names)}
    for file in files:
        save_file({name: weights[name] for name in names if index[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": 64}))
    (tmp_path / "CogVideoX" / "model_index.json").write_text("{}")
    for place in (tmp_path / "CogVideoX", folder):
        assert torch.equal(encode(host, host.load(place), PROMPT), encode(host, released, PROMPT))


def test_patcher_can_be_made_again(clip):
    function, arguments = clip.patcher.cached_patcher_init
    again = function(*arguments, disable_dynamic=True)
    old, new = clip.patcher.model.state_dict(), again.model.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[key], new[key]) for key in old if "logit_scale" not in key)


def test_lazily_loaded_weights(host, clip, path, monkeypatch):
    """Newer hosts make layers without weights and assign the file's tensors: nothing may look at a weight before."""
    memory = pytest.importorskip("comfy.memory_management")
    if not hasattr(memory, "aimdo_enabled"):
        pytest.skip("this host has no dynamic VRAM")
    monkeypatch.setattr(memory, "aimdo_enabled", True)
    import comfy.model_management
    monkeypatch.setattr(comfy.model_management, "WINDOWS", True, raising=False)  # elsewhere some hosts allocate
    assert apart(encode(host, host.load(path), PROMPT), encode(host, clip, PROMPT)) < 1e-6


# Tokenizers

def test_tokenizer_files(host, clip, tmp_path):
    path = tiny_cogvideox.save_t5(tmp_path / "bare.safetensors", spiece_model=None)
    with pytest.raises(FileNotFoundError, match="bare.safetensors: no tokenizer inside it.*spiece.model.*tokenizer_name"):
        host.load(path)
    picked = tmp_path / "elsewhere" / "my.model"
    picked.parent.mkdir()
    picked.write_bytes(tiny.sentencepiece_model())
    wanted = encode(host, clip, PROMPT)
    assert torch.equal(encode(host, host.load(path, picked), PROMPT), wanted)
    (tmp_path / "spiece.model").write_bytes(tiny.sentencepiece_model())
    assert torch.equal(encode(host, host.load(path), PROMPT), wanted)
    picked.write_bytes(b"this is no tokenizer")
    with pytest.raises(ValueError, match="my.model: not a tokenizer"):
        host.load(path, picked)


def test_tokenizer_json(host, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "red": 3, "circle": 4}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    clip = host.load(tiny_cogvideox.save_t5(tmp_path / "bare.safetensors", spiece_model=None))
    assert [token for token, _ in clip.tokenize("red circle")["t5xxl"][0][:4]] == [3, 4, 1, 0]


def test_tokenizer_of_another_model(host, tmp_path):
    weights = tiny_cogvideox.t5_weights(vocabulary=100)
    with pytest.raises(ValueError, match="small.safetensors: its tokenizer has .* pieces, the text encoder knows 100"):
        host.load(tiny_cogvideox.save_t5(tmp_path / "small.safetensors", **weights))


# What is refused, and how

def of_another_kind():
    weights = tiny_cogvideox.t5_weights()
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    ungated = {key.replace("wi_0", "wi"): t for key, t in weights.items() if "wi_1" not in key}
    return [
        ("T5 with its decoder", weights | {"decoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(2, 2)}),
        ("T5 of the first version", ungated),
        ("UMT5", weights | {bias.format(1): torch.zeros(32, 2)}),
        ("mT5", weights | {"shared.weight": torch.zeros(250112, 1)}),
        ("Gemma", tiny.gemma_weights()),
        ("CLIP", {"text_model.encoder.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)}),
        ("CogVideoX VAE", tiny_cogvideox.autoencoder().state_dict()),
        ("CogVideoX transformer", tiny_cogvideox.transformer().state_dict()),
    ]


@pytest.mark.parametrize("number", range(8))
def test_other_models(host, tmp_path, number):
    name, tensors = of_another_kind()[number]
    path = tiny_cogvideox.save(tensors, tmp_path / "other.safetensors", {})
    with pytest.raises(ValueError, match=f"other.safetensors: not the text encoder of CogVideoX: this is .*{name}"):
        host.load(path)


@pytest.mark.parametrize("changes", [
    {"encoder.block.1.layer.1.DenseReluDense.wo.weight": None},
    {"encoder.block.1.layer.0.SelfAttention.k.weight": torch.zeros(3, 3)},
    {"encoder.final_layer_norm.weight": None},
    {"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": None},
    {"encoder.block.0.layer.0.SelfAttention.extra.weight": torch.zeros(3)},
])
def test_damaged_files(host, tmp_path, changes):
    path = tiny_cogvideox.save_t5(tmp_path / "bad.safetensors", **changes)
    with pytest.raises(ValueError, match=f"bad.safetensors: not a whole T5 v1.1 encoder.*{next(iter(changes))}"):
        host.load(path)
