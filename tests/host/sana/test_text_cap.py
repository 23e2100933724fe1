"""The cap on the logits of Gemma-2's attention, which the released model has and the host's network lacks."""

import json

import pytest
import torch

from .. import tiny
from .sana_model import PROMPT, apart, host  # noqa: F401


def loud():
    """Weights whose logits reach far beyond the cap."""
    return {key: t * (6 if ".q_proj." in key or ".k_proj." in key else 1) for key, t in tiny.gemma_weights().items()}


def load(host, folder, weights, **config):
    folder.mkdir()
    path = tiny.save_gemma(folder / "model.safetensors", weights=weights)
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma2", "vocab_size": 500} | config))
    return host.text.load_text_encoder(path)


def states_of(host, clip, text=PROMPT, instruction=True):
    """States of the tokens that count, and the ids of the whole prompt."""
    ids = [token for token, _ in clip.tokenize(text, tokenizer_options={host.text.INSTRUCTION_OPTION: instruction})["gemma2_2b"][0]]
    states, extra = host.text.encode_prompt(clip, text, instruction)[0]
    return states[:, extra["attention_mask"][0].bool()], ids[:len(ids) - ids[::-1].index(next(i for i in ids[::-1] if i))]


@pytest.mark.parametrize("instruction", [True, False])
def test_states_are_those_of_transformers_with_the_cap(host, tmp_path, instruction):
    weights = loud()
    states, ids = states_of(host, load(host, tmp_path / "x", weights, attn_logit_softcapping=50.0), PROMPT, instruction)
    tail = len(states[0]) - 1

    def wanted(cap):
        found = tiny.gemma(weights, cap)(torch.tensor([ids])).last_hidden_state
        return torch.cat([found[:, :1], found[:, len(ids) - tail:]], dim=1)

    assert apart(states, wanted(50.0)) < 1e-5
    assert apart(states, wanted(None)) > 1e-2, "the logits of these weights do not reach the cap"


def test_it_is_there_in_bf16_too(host, tmp_path):
    weights = {key: t.bfloat16() for key, t in loud().items()}
    states, ids = states_of(host, load(host, tmp_path / "x", weights, attn_logit_softcapping=50.0), PROMPT, False)
    wanted = tiny.gemma({key: t.float() for key, t in weights.items()}, 50.0)(torch.tensor([ids])).last_hidden_state
    assert apart(states, wanted) < 1e-5


def test_without_it_where_the_file_says_so(host, tmp_path):
    weights = loud()
    states, ids = states_of(host, load(host, tmp_path / "x", weights, attn_logit_softcapping=None), PROMPT, False)
    assert apart(states, tiny.gemma(weights)(torch.tensor([ids])).last_hidden_state) < 1e-5


@pytest.mark.parametrize("config, vocabulary, cap", [
    (None, 256000, 50.0), (None, 500, None), ({}, 256000, 50.0),
    ({"vocab_size": 256000, "attn_logit_softcapping": 30.0}, 256000, 30.0),
    ({"vocab_size": 256000, "attn_logit_softcapping": None}, 256000, None),
    ({"vocab_size": 768, "attn_logit_softcapping": None}, 256000, 50.0)])  # another model's config
def test_what_asks_for_it(host, config, vocabulary, cap):
    assert host.text.cap_of("attn_logit_softcapping", config, vocabulary) == cap


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_attention_is_its_equation(host, key_heads):
    generator = torch.Generator().manual_seed(0)
    q = 8 * torch.randn(2, 4, 6, 16, generator=generator)
    k, v = (torch.randn(2, key_heads, 6, 16, generator=generator) for _ in range(2))
    mask = torch.full((6, 6), float("-inf")).triu(1)
    logits = q.double() @ k.double().repeat_interleave(4 // key_heads, 1).transpose(-1, -2) / 4
    wanted = (5 * (logits / 5).tanh() + mask).softmax(-1) @ v.double().repeat_interleave(4 // key_heads, 1)
    found = host.text.capped_attention(5.0, q, k, v, 4, mask=mask, skip_reshape=True)
    assert apart(found.double(), wanted.transpose(1, 2).flatten(2)) < 1e-6
    assert apart(found.double(), (logits + mask).softmax(-1).matmul(v.double().repeat_interleave(4 // key_heads, 1))
                 .transpose(1, 2).flatten(2)) > 1e-2
