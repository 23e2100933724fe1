"""The training's Gemma-2 against ComfyUI's own network, which is what runs the embedded file."""
import pytest
import torch

from sanacog.training.embedded import gemma

from .. import tiny as host_help


@pytest.mark.parametrize("prompt", ["a large red circle on the left on a blue background", "", "no such words: \u65e5\u672c"])
def test_same_states(prompt, comfyui_path):
    host_help.import_host(comfyui_path)
    import comfy.ops
    from comfy.text_encoders.llama import Gemma2_2B_Config, Llama2_

    torch.manual_seed(0)
    tokenizer = gemma.Tokenizer(gemma.train_tokenizer())
    model = gemma.Gemma2(gemma.GemmaParams(vocab_size=len(tokenizer))).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms too: their stored weights are zero otherwise
            parameter.add_(0.1 * torch.randn_like(parameter))
    p = model.params
    config = Gemma2_2B_Config(
        vocab_size=p.vocab_size, hidden_size=p.hidden_size, intermediate_size=p.intermediate_size,
        num_hidden_layers=p.num_hidden_layers, num_attention_heads=p.num_attention_heads,
        num_key_value_heads=p.num_key_value_heads)
    reference = Llama2_(config, device="cpu", dtype=torch.float32, ops=comfy.ops.disable_weight_init)
    reference.load_state_dict(model.state_dict())
    ids = tokenizer.encode(prompt, True)[0]
    padded = torch.tensor([ids + [gemma.PAD] * 7])
    mask = torch.tensor([[1] * len(ids) + [0] * 7])
    with torch.no_grad():
        ours = model(padded)[:, : len(ids)]
        theirs = reference(padded, attention_mask=mask)[0][:, : len(ids)]
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-5
