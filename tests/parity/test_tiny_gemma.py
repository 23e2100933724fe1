"""The training's Gemma-2 against transformers'."""
import pytest
import torch

from sanacog.training.embedded import gemma

PROMPTS = ["a large red circle on the left on a blue background", "", "no such words: 日本 😀"]


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    model_bytes = gemma.train_tokenizer()
    tokenizer = gemma.Tokenizer(model_bytes)
    model = gemma.Gemma2(gemma.GemmaParams(vocab_size=len(tokenizer))).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms too: their stored weights are zero otherwise
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, tokenizer, model_bytes


def relative(ours, reference):
    return ((ours - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("instruction", [False, True])
def test_transformers(tiny, instruction):
    from transformers import Gemma2Config, Gemma2Model

    model, tokenizer, model_bytes = tiny
    tensors, config = gemma.to_file(model, model_bytes)
    config = {k: v for k, v in config.items() if k not in ("architectures", "model_type")}
    reference = Gemma2Model(Gemma2Config(**config, attn_implementation="eager")).eval()
    reference.load_state_dict({k.removeprefix("model."): v for k, v in model.state_dict().items()})
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt, instruction)[0]])
        with torch.no_grad():
            assert relative(model(ids), reference(ids).last_hidden_state) < 1e-5
