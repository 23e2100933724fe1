"""Sana's CLIP inside the real host, on random tiny weights: transformers' numbers."""

from types import SimpleNamespace

import pytest
import torch

from . import tiny
from .sana_model import PROMPT, apart, clip, host, reference, saved, weights  # noqa: F401


@pytest.mark.parametrize("text, instruction", [
    (PROMPT, True), (PROMPT, False), ("", False), ("一只猫 🐈‍⬛", True), ("word " * 10_000, True), ("word " * 10_000, False)])
def test_text_equals_transformers(host, clip, text, instruction):
    states, extra = host.text.encode_prompt(clip, text, instruction)[0]
    wanted, mask = reference(text.strip(), instruction)
    assert states.shape == (1, 300, tiny.CAPTION)
    assert torch.equal(extra["attention_mask"], mask)
    tokens = mask[0].bool()
    assert apart(states[:, tokens], wanted[:, tokens]) < 1e-5
    assert not states[:, ~tokens].any()


def test_stock_encoding_has_no_instruction(host, clip):
    stock = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))[0]  # what CLIPTextEncode does
    assert torch.equal(stock[0], host.text.encode_prompt(clip, PROMPT, False)[0][0])
    assert not torch.equal(stock[0], host.text.encode_prompt(clip, PROMPT, True)[0][0])


def test_weights_in_brackets_are_plain_text(clip):
    row = clip.tokenize("(word:1.2)", tokenizer_options={})["gemma2_2b"][0]
    assert {weight for _, weight in row} == {1.0}
    count = sum(token != 0 for token, _ in row)
    assert clip.tokenizer.decode([token for token, _ in row[:count]]) == "(word:1.2)"
    assert clip.tokenize("\\(word\\)") == clip.tokenize("(word)")
    assert clip.tokenizer.untokenize(row[:1])[0][0] == row[0]


def test_norms_keep_their_precision_in_bf16(host, tmp_path):
    half = {key: t.bfloat16() for key, t in tiny.gemma_weights().items()}
    clip = host.text.load_text_encoder(tiny.save_gemma(tmp_path / "half.safetensors", weights=half))
    states, extra = host.text.encode_prompt(clip, PROMPT, False)[0]
    tokens = extra["attention_mask"][0].bool()
    ids = [[token for token, _ in clip.tokenize(PROMPT)["gemma2_2b"][0] if token]]
    wanted = tiny.gemma({key: t.float() for key, t in half.items()})(torch.tensor(ids)).last_hidden_state
    assert apart(states[:, tokens], wanted) < 1e-5


@pytest.mark.parametrize("prefix", ["", "model.", "gemma2_2b.transformer.model."])
def test_key_prefixes(host, clip, tmp_path, prefix):
    again = host.text.load_text_encoder(tiny.save_gemma(tmp_path / "g.safetensors", prefix))
    assert torch.equal(host.text.encode_prompt(again, PROMPT, True)[0][0], host.text.encode_prompt(clip, PROMPT, True)[0][0])


def test_tokenizer_files(host, clip, tmp_path):
    wanted = host.text.encode_prompt(clip, PROMPT, True)[0][0]
    path = tiny.save_gemma(tmp_path / "bare.safetensors", tokenizer=False)
    with pytest.raises(FileNotFoundError, match="no tokenizer inside it.*tokenizer.model"):
        host.text.load_text_encoder(path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    picked = elsewhere / "my.model"
    picked.write_bytes(tiny.sentencepiece_model())
    assert torch.equal(host.text.encode_prompt(host.text.load_text_encoder(path, picked), PROMPT, True)[0][0], wanted)
    (tmp_path / "tokenizer.model").write_bytes(tiny.sentencepiece_model())
    assert torch.equal(host.text.encode_prompt(host.text.load_text_encoder(path), PROMPT, True)[0][0], wanted)
    picked.write_bytes(b"this is no tokenizer")
    with pytest.raises(ValueError, match="my.model: not a tokenizer"):
        host.text.load_text_encoder(path, picked)


def test_tokenizer_json(host, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "red": 4, "circle": 5}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    path = tiny.save_gemma(tmp_path / "bare.safetensors", tokenizer=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    clip = host.text.load_text_encoder(path)
    assert [token for token, _ in clip.tokenize("red circle")["gemma2_2b"][0][:4]] == [2, 4, 5, 0]
    again = host.text.load_text_encoder(saved(host, host.sana.load_sana(tiny.save_sana(tmp_path / "s.safetensors")),
                                              tmp_path / "whole.safetensors", clip))
    assert again.tokenize("red circle") == clip.tokenize("red circle")


def test_other_clips_are_refused(host):
    with pytest.raises(ValueError, match="Load Sana Text Encoder"):
        host.text.encode_prompt(SimpleNamespace(tokenizer=object()), "a cat", True)


def test_saved_clip_is_one_file_and_loads_again(host, clip, tmp_path, monkeypatch):
    import folder_paths
    from comfy_extras.nodes_model_merging import CLIPSave

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    CLIPSave().save(clip, "clip/ComfyUI")
    [file] = (tmp_path / "clip").iterdir()
    again = host.text.load_text_encoder(file)
    assert torch.equal(host.text.encode_prompt(again, PROMPT, True)[0][0], host.text.encode_prompt(clip, PROMPT, True)[0][0])
