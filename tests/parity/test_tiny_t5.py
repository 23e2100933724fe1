"""The training's T5 against transformers'."""
import pytest
import torch

from sanacog.training.embedded import t5

PROMPTS = ["a red circle moving left on a blue background", "", "no such words: 日本 😀", "a " * 60]


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    tokenizer = t5.Tokenizer(t5.train_tokenizer())
    model = t5.T5Encoder(t5.T5Params(vocab_size=len(tokenizer))).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the norms' weights too, which are all 1 otherwise
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, tokenizer


@pytest.mark.parametrize("length", [t5.LENGTH, 226])
def test_transformers(tiny, length):
    from transformers import T5Config, T5EncoderModel

    model, tokenizer = tiny
    tensors, config = t5.to_file(model, b"x")
    del tensors["spiece_model"]
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "relative_attention_num_buckets",
             "relative_attention_max_distance", "layer_norm_epsilon", "feed_forward_proj")
    reference = T5EncoderModel(T5Config(**{k: config[k] for k in names})).eval()
    missing, unexpected = reference.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected and set(missing) <= {"encoder.embed_tokens.weight"}  # the same tensor as shared.weight
    assert tensors.keys() == model.state_dict().keys()
    ids = torch.nn.functional.pad(tokenizer(PROMPTS), (0, length - t5.LENGTH), value=t5.PAD)
    with torch.no_grad():
        ours, theirs = model(ids), reference(ids).last_hidden_state
    assert (ours - theirs).norm() / theirs.norm() < 1e-5


def test_prompts_fill_their_length(tiny):
    _, tokenizer = tiny
    ids = tokenizer(PROMPTS)
    assert ids.shape == (4, 32)
    assert tokenizer.pieces.encode(PROMPTS[0], out_type=str) == ["▁" + word for word in PROMPTS[0].split()]
    assert ids[0, 9:].tolist() == [t5.EOS] + [t5.PAD] * 22 and t5.PAD not in ids[0, :9]
    assert ids[1].tolist() == [t5.EOS] + [t5.PAD] * 31
    assert ids[3, -1] == t5.EOS and t5.PAD not in ids[3]
    assert tokenizer.pieces.decode(ids[2, : ids[2].tolist().index(t5.EOS)].tolist()) == PROMPTS[2]
