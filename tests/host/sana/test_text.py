"""Sana's CLIP inside the real host, on random tiny weights: transformers' numbers."""

import logging
from types import SimpleNamespace

import pytest
import torch

from .. import tiny
from .sana_model import (PROMPT, apart, clip, conditioning, host, model, noise, reference, sample, saved,  # noqa: F401
                         weights)


@pytest.mark.parametrize("text, instruction", [
    (PROMPT, True), (PROMPT, False), ("", False), ("", True), ("一只猫 🐈‍⬛", True), ("word " * 10_000, True), ("word " * 10_000, False)])
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


# Long prompts

@pytest.mark.parametrize("instruction", [True, False])
def test_what_is_cut_off_is_logged_once(host, clip, caplog, instruction):
    caplog.set_level(logging.INFO)
    host.text.encode_prompt(clip, PROMPT, instruction)
    host.text.encode_prompt(clip, "", instruction)
    assert "cut off" not in caplog.text
    text = "red circle " * 400
    asked, counts = [], []
    tokenize = clip.tokenizer.ids
    for words in (text, text[: len(text) // 2]):
        caplog.clear()
        host.text.encode_prompt(clip, words, instruction)
        [line] = [record.getMessage() for record in caplog.records if "cut off" in record.getMessage()]
        counts.append(int(line.split("the last ")[1].split()[0]))
        asked.append(len(tokenize(words.strip())))
    assert asked[0] - asked[1] == counts[0] - counts[1]
    # Without the instruction 300 are read, BOS counted; behind it the first blank is the instruction's.
    assert counts[0] - (asked[0] - 300) in ((0, 1) if instruction else (0,))


# The negative prompt

def padded_reference(text):
    """transformers' states of all 300 tokens, padding and all, (1, 300, C)."""
    import sentencepiece

    ids = [2] + sentencepiece.SentencePieceProcessor(model_proto=tiny.sentencepiece_model()).encode(text)
    mask = torch.tensor([[1] * len(ids) + [0] * (300 - len(ids))])
    return tiny.gemma()(torch.tensor([ids + [0] * (300 - len(ids))]), attention_mask=mask).last_hidden_state


@pytest.mark.parametrize("text", ["", "a bad, blurry picture with too much grey noise in it"])
def test_both_rules_for_the_negative_prompt(host, clip, model, text):
    """One guided step by the core alone: diffusers' (each prompt its own mask) and NVlabs' (the positive's for both)."""
    positive = host.text.encode_prompt(clip, PROMPT, True)
    states, mask = reference(PROMPT, True)
    with torch.no_grad():
        own_states, own_mask = reference(text, False)
        padded = padded_reference(text)
    start, core = noise(1), tiny.sana()

    def guided(negative, negative_mask):
        v, u = (core(start, torch.tensor([1000.0]), c, m) for c, m in ((states, mask), (negative, negative_mask)))
        return (start - (u + 4.5 * (v - u))) / 0.41407

    def ours(negative):
        return sample(host, model, positive=positive, negative=negative, steps=1, start=start)

    diffusers, nvlabs = guided(own_states, own_mask), guided(padded, mask)
    assert apart(ours(host.text.encode_prompt(clip, text, False)), diffusers) < 1e-5
    assert apart(ours(host.text.encode_nvlabs_negative(clip, positive, text)), nvlabs) < 1e-5
    assert apart(nvlabs, diffusers) > 1e-3


def test_nvlabs_negative_wants_one_plain_prompt(host, clip):
    positive = host.text.encode_prompt(clip, PROMPT, True)
    joined = [[torch.cat([positive[0][0]] * 2, 1), positive[0][1]]]
    for wrong, found in ((positive * 2, "1x300x64 and 1x300x64"), (joined, "1x600x64")):
        with pytest.raises(ValueError, match=f"one positive prompt of 300 tokens.*{found}"):
            host.text.encode_nvlabs_negative(clip, wrong)
    with pytest.raises(ValueError, match="Load Sana Text Encoder"):
        host.text.encode_nvlabs_negative(SimpleNamespace(tokenizer=object()), positive)


# Less memory

@pytest.mark.parametrize("name, limit", [("bf16", 0.02), ("fp16", 3e-3), ("fp8_e4m3fn", 0.15), ("fp8_e5m2", 0.25)])
def test_weight_dtypes(host, weights, clip, name, limit):
    small = host.text.load_text_encoder(weights.gemma, weight_dtype=name)
    kept = host.loading.WEIGHT_DTYPES[name]
    eight = kept.itemsize == 1
    for key, weight in small.cond_stage_model.gemma2_2b.transformer.named_parameters():
        assert weight.dtype == (torch.float32 if "norm" in key else torch.bfloat16 if eight and "embed" in key else kept), key
    wanted, got = (host.text.encode_prompt(c, PROMPT, True)[0] for c in (clip, small))
    assert torch.equal(got[1]["attention_mask"], wanted[1]["attention_mask"])
    assert 0 < apart(got[0], wanted[0]) < limit
    with pytest.raises(ValueError, match="weight_dtype is 'int3'"):
        host.text.load_text_encoder(weights.gemma, weight_dtype="int3")


def lora(patcher, ends):
    """A clone with a LoRA on each weight whose name ends so."""
    from comfy.weight_adapter import LoRAAdapter

    generator = torch.Generator().manual_seed(1)
    patches, clone = {}, patcher.clone()
    for key, weight in patcher.model.named_parameters():
        if key.endswith(ends):
            up, down = (torch.randn(size, generator=generator) * 0.1 for size in ((len(weight), 2), (2, weight.shape[1])))
            patches[key] = LoRAAdapter(set(), (up, down, None, None, None, None))
    clone.add_patches(patches)
    return clone


def loaded_whole(patcher):
    patcher.detach()
    patcher.patch_model(torch.device("cpu"))


def loaded_in_part(patcher):
    """Few of the weights on the device, as the host does it where memory is short; the others it patches when used."""
    from comfy.model_patcher import wipe_lowvram_weight

    patcher.detach()
    for module in patcher.model.modules():
        wipe_lowvram_weight(module)  # newer hosts leave the marks of a first, whole load
    patcher.partially_load(torch.device("cpu"), patcher.model_size() // 3)
    assert patcher.model.model_lowvram and patcher.loaded_size() < patcher.model_size() / 2
    assert any(m.weight_function for m in patcher.model.modules() if hasattr(m, "weight_function"))


def test_text_encoder_loaded_in_part(host, weights):
    states = []
    for load in (loaded_whole, loaded_in_part):
        clip = host.text.load_text_encoder(weights.gemma)
        tokens = clip.tokenize(PROMPT)
        plain = clip.cond_stage_model.encode_token_weights(tokens)[0]
        load(lora(clip.patcher, "proj.weight"))
        states.append(clip.cond_stage_model.encode_token_weights(tokens)[0])
    assert apart(states[1], states[0]) < 1e-5 < 1e-2 < apart(plain, states[0])


def test_model_loaded_in_part(host, weights):
    [[states, values]], outputs = conditioning(9), []
    for load in (loaded_whole, loaded_in_part):
        model = host.sana.load_sana(weights.sana)
        run = lambda: model.model.diffusion_model(noise(1), torch.tensor([500.0]), states, values["attention_mask"])
        plain = run()
        load(lora(model, ("to_q.weight", "conv_inverted.weight")))
        outputs.append(run())
    assert apart(outputs[1], outputs[0]) < 1e-5 < 1e-2 < apart(plain, outputs[0])
