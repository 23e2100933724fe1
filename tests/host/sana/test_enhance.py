"""Text written by Sana's Gemma-2: the stock Generate Text, and Enhance Prompt; transformers' own words on the same
weights."""

import io
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from .. import tiny, tiny_cogvideox as tinycog
from .sana_model import PROMPT, clip, host, weights  # noqa: F401

TURN, TURN_END = "<start_of_turn>", "<end_of_turn>"


@pytest.fixture(scope="module")
def enhance(host):
    from sanacog.host import enhance
    return enhance


@pytest.fixture(scope="module")
def writes(host):
    if not hasattr(host.comfy.sd.CLIP, "generate"):
        pytest.skip("this ComfyUI has no text written by a CLIP")


def with_turns():
    """A tokenizer that knows the turns of a conversation, as the released one does."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([PROMPT, "Rewrite the description. user model"] * 20), model_writer=out, vocab_size=400,
        model_type="bpe", byte_fallback=True, hard_vocab_limit=False, normalization_rule_name="identity", pad_id=0, eos_id=1,
        bos_id=2, unk_id=3, user_defined_symbols=[TURN, TURN_END, "\n"], add_dummy_prefix=False, minloglevel=2)
    return out.getvalue()


def speaking_weights():
    """With a row of the embedding for each piece of that tokenizer, small so that the blocks decide what comes next."""
    import sentencepiece

    weights = tiny.gemma_weights()
    rows = sentencepiece.SentencePieceProcessor(model_proto=with_turns()).get_piece_size()
    generator = torch.Generator().manual_seed(3)
    return weights | {"embed_tokens.weight": 0.05 * torch.randn(rows, tiny.CAPTION, generator=generator)}


@pytest.fixture(scope="module")
def speaker(host, tmp_path_factory):
    """A Gemma-2 with that tokenizer."""
    path = tmp_path_factory.mktemp("speaker") / "gemma.safetensors"
    tensors = {f"model.{key}": t for key, t in speaking_weights().items()}
    save_file(tensors | {"spiece_model": torch.frombuffer(bytearray(with_turns()), dtype=torch.uint8)}, path)
    return host.text.load_text_encoder(path)


def theirs(ids, count, cap=None, final_cap=None, weights=None):
    """The likeliest words after ids, by transformers."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    weights = weights or speaking_weights()
    sizes = tiny.GEMMA | {"vocab_size": len(weights["embed_tokens.weight"])}
    config = Gemma2Config(**sizes, head_dim=tiny.HEAD_DIM, query_pre_attn_scalar=tiny.HEAD_DIM, attn_logit_softcapping=cap,
                          final_logit_softcapping=final_cap, pad_token_id=0, bos_token_id=2, eos_token_id=1,
                          attn_implementation="eager", tie_word_embeddings=True)
    model = Gemma2ForCausalLM(config).eval()
    model.model.load_state_dict(weights)
    with torch.inference_mode(False), torch.no_grad():
        tokens, logits = list(ids), None
        for _ in range(count):
            logits = model(torch.tensor([tokens])).logits[0, -1]
            tokens.append(int(logits.argmax()))
    return tokens[len(ids):], logits


def test_a_conversation_is_told_in_turns(speaker):
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=with_turns())
    [[*pairs]] = speaker.tokenize("Rewrite (it:1.2)", skip_template=False, min_length=1)["gemma2_2b"]
    assert [i for i, _ in pairs] == [2] + pieces.encode(f"{TURN}user\nRewrite (it:1.2){TURN_END}\n{TURN}model\n")
    told = f"{TURN}user\nmine{TURN_END}\n{TURN}model\n"  # one that is told so already stays
    assert [i for i, _ in speaker.tokenize(told, skip_template=False)["gemma2_2b"][0]] == [2] + pieces.encode(told)
    [plain] = speaker.tokenize("as it is", skip_template=True)["gemma2_2b"]
    assert [i for i, _ in plain] == [2] + pieces.encode("as it is")
    assert len(speaker.tokenize("a prompt")["gemma2_2b"][0]) == 300  # encoding stays what it was
    assert speaker.tokenizer.decode([2, *pieces.encode(f"words{TURN_END}"), 1]) == "words"


def test_writes_what_transformers_writes(host, writes, speaker):
    tokens = speaker.tokenize(PROMPT, skip_template=False, min_length=1)
    ids = [i for i, _ in tokens["gemma2_2b"][0]]
    network = speaker.cond_stage_model.gemma2_2b.transformer
    stop = network.model.config.stop_tokens
    assert stop == [1, speaker.tokenizer.pieces.id(TURN_END)] and speaker.tokenizer.pieces.piece(stop[1]) == TURN_END
    want, _ = theirs(ids, 24)
    want = want[:next((n + 1 for n, token in enumerate(want) if token in stop), 24)]
    assert speaker.generate(tokens, do_sample=False, max_length=24) == want and len(set(want)) > 1


def test_both_caps_are_there(host, writes, tmp_path):
    """Weights whose logits reach far beyond them: the last word's logits, and the words, are transformers'."""
    loud = {key: t * (6 if ".q_proj." in key or ".k_proj." in key else 1) for key, t in tiny.gemma_weights().items()}
    path = tiny.save_gemma(tmp_path / "model.safetensors", weights=loud)
    config = {"model_type": "gemma2", "vocab_size": 500, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 3.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    clip = host.text.load_text_encoder(path)
    network, seen = clip.cond_stage_model.gemma2_2b.transformer, []
    sample = network.sample_token

    def look(logits, *args, **kwargs):
        seen.append(logits.clone())
        return sample(logits, *args, **kwargs)
    network.sample_token = look
    tokens = clip.tokenize(PROMPT, skip_template=True)
    ids = [i for i, _ in tokens["gemma2_2b"][0]]
    written = clip.generate(tokens, do_sample=False, max_length=5)
    want, logits = theirs(ids, 5, 50.0, 3.0, loud)
    assert written == want
    assert torch.allclose(seen[-1][0], logits, atol=1e-4) and logits.abs().max() <= 3.0
    assert not torch.allclose(logits, theirs(ids, 5, 50.0, None, loud)[1], atol=0.1)


def test_stock_generate_text(host, writes, speaker):
    from .. import stock

    def write(**sampling):
        return stock.run("TextGenerate", speaker, PROMPT, 12, sampling, module="nodes_textgen")

    plain = write(sampling_mode="off")
    ids = [i for i, _ in speaker.tokenize(PROMPT, skip_template=False)["gemma2_2b"][0]]
    assert plain == speaker.decode(theirs(ids, 12)[0])
    on = dict(sampling_mode="on", temperature=2.0, top_k=64, top_p=0.95, min_p=0.0, repetition_penalty=1.05)
    assert write(**on, seed=1) == write(**on, seed=1) != write(**on, seed=2)


@pytest.mark.parametrize("template", ["Sana picture", "CogVideoX video"])
def test_enhance(host, writes, enhance, speaker, template):
    words = enhance.enhance(speaker, f" {PROMPT}\n", template, 1, max_length=20, temperature=0.0)
    question = f"{TURN}user\n{enhance.TEMPLATES[template]}Description: {PROMPT}{TURN_END}\n{TURN}model\n"
    ids = [2] + speaker.tokenizer.pieces.encode(question)
    stop = speaker.tokenizer.pieces.id(TURN_END)
    want = theirs(ids, 20)[0]
    want = want[:next((n for n, token in enumerate(want) if token in (1, stop)), 20)]
    assert words == " ".join(speaker.decode(want).split()) != ""
    first, again, other = (enhance.enhance(speaker, PROMPT, template, seed, 20, 1.5) for seed in (1, 1, 2))
    assert first == again != other


def test_a_model_that_writes_nothing_leaves_the_prompt(host, enhance, writes, speaker, monkeypatch, caplog):
    monkeypatch.setattr(speaker, "generate", lambda tokens, **kwargs: [1])
    assert enhance.enhance(speaker, PROMPT, "Sana picture", 0) == PROMPT and "wrote nothing" in caplog.text


def test_what_cannot_write_is_refused(host, enhance, clip, tmp_path):
    from sanacog.host.cogvideox.text import load_t5

    with pytest.raises(ValueError, match="template is 'x': choose one of Sana picture, CogVideoX video"):
        enhance.enhance(clip, PROMPT, "x", 0)
    with pytest.raises(ValueError, match="The prompt is empty"):
        enhance.enhance(clip, "  ", "Sana picture", 0)
    with pytest.raises(ValueError, match="has no way to write text with a CLIP: 0.16 or newer is needed"):
        enhance.enhance(SimpleNamespace(), PROMPT, "Sana picture", 0)
    if hasattr(host.comfy.sd.CLIP, "generate"):
        with pytest.raises(ValueError, match=r"only reads text and cannot write any \(it is T5"):
            enhance.enhance(load_t5(tinycog.save_t5(tmp_path / "t5.safetensors")), PROMPT, "CogVideoX video", 0)
    else:
        with pytest.raises(ValueError, match="has no way to write text"):
            enhance.enhance(clip, PROMPT, "Sana picture", 0)
