"""Text encoders through transformers, against the pack's own small ones, which were trained without transformers."""

import json
import logging
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sanacog.sana_core.text import INSTRUCTION, MAX_TOKENS
from sanacog.training.embedded import gemma, t5
from sanacog.training.embedded.recipe import read_file
from sanacog.training.text import T5, Gemma

MODELS = Path(__file__).resolve().parents[2] / "models" / "text_encoders"
GEMMA, TINY_T5 = MODELS / "sanacog_tiny_gemma2.safetensors", MODELS / "sanacog_tiny_t5.safetensors"
PROMPT = "a large red circle on the left on a blue background"


@pytest.fixture(scope="module")
def encoder():
    return Gemma(GEMMA)


def error(one, other):
    assert one.shape == other.shape
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("instruction", (False, True))
def test_gemma_is_the_networks_own(encoder, instruction):
    network, tokenizer = gemma.from_file(*read_file(GEMMA))
    with torch.no_grad():
        expected, mask = gemma.encode_prompts(network, tokenizer, [PROMPT], instruction)
    states, found = encoder.encode(PROMPT, instruction)
    assert error(states, expected[0]) < 1e-5 and len(found) == mask.sum() == found.sum()


def test_long_prompts_keep_300_tokens(encoder, caplog):
    caplog.set_level(logging.INFO)
    states, mask = encoder.encode(PROMPT * 60, True)
    assert len(states) == len(mask) == MAX_TOKENS and "cut off" in caplog.text


def test_empty_prompt_has_its_padding(encoder):
    states, mask = encoder.encode_empty()
    assert states.shape == (MAX_TOKENS, 96) and mask.tolist() == [1] + [0] * (MAX_TOKENS - 1)
    assert states[1:].norm(dim=1).min() > 0
    alone, _ = encoder.encode("")
    assert torch.allclose(states[:1], alone, atol=1e-5)


def test_gemma_caps_its_attention(tmp_path):
    """With a cap far below the logits the states are others; transformers' other attentions would leave it out."""
    tensors, config = read_file(GEMMA)
    path = tmp_path / "capped.safetensors"
    safetensors.torch.save_file(tensors, path, {"format": "pt", "config": json.dumps(config | {"attn_logit_softcapping": 0.5})})
    capped = Gemma(path)
    assert capped.model.config.attn_logit_softcapping == 0.5
    assert error(capped.encode(PROMPT)[0], Gemma(GEMMA).encode(PROMPT)[0]) > 1e-3


def test_t5_is_the_networks_own():
    network, tokenizer = t5.from_file(*read_file(TINY_T5))
    encoder = T5(TINY_T5, 226)
    for prompt in (PROMPT, "", PROMPT * 20):
        states, mask = encoder.encode(prompt)
        with torch.no_grad():
            assert error(states, network(tokenizer([prompt]))[0]) < 1e-5
        assert states.shape == (32, 96) and mask.sum() == 32  # its file says 32, not 226


def test_folder_with_a_tokenizer_beside(tmp_path):
    tensors, config = read_file(GEMMA)
    folder = tmp_path / "repository" / "text_encoder"
    folder.mkdir(parents=True)
    spiece = tensors.pop("spiece_model")
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileNotFoundError, match="no tokenizer inside it"):
        Gemma(folder)
    (folder.parent / "tokenizer").mkdir()
    (folder.parent / "tokenizer" / "tokenizer.model").write_bytes(spiece.numpy().tobytes())
    assert error(Gemma(folder).encode(PROMPT, True)[0], Gemma(GEMMA).encode(PROMPT, True)[0]) < 1e-6


def test_half_weights_are_computed_with_in_fp32():
    encoder = Gemma(GEMMA)
    linear = encoder.model.layers[0].mlp.up_proj
    assert linear.weight.dtype == torch.float16 and linear(torch.ones(1, 96)).dtype == torch.float32
    assert T5(TINY_T5, 226).model.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float32


@pytest.mark.parametrize("change, said", (
    (lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"), "layers.1.mlp.up_proj.weight"),
    (lambda tensors: tensors.update({"spiece_model": torch.zeros(9, dtype=torch.uint8)}), "not a tokenizer"),
))
def test_damaged_files_are_refused(tmp_path, change, said):
    tensors, config = read_file(GEMMA)
    change(tensors)
    safetensors.torch.save_file(tensors, tmp_path / "gemma.safetensors", {"format": "pt", "config": json.dumps(config)})
    with pytest.raises(ValueError, match=said):
        Gemma(tmp_path / "gemma.safetensors")


def test_the_other_familys_encoder_is_refused():
    with pytest.raises(ValueError, match="Sana reads gemma-2-2b-it"):
        Gemma(TINY_T5)
    with pytest.raises(ValueError, match="t5-v1_1-xxl"):
        T5(GEMMA, 226)


def test_instruction_ends_in_a_blank_that_is_kept(encoder):
    count = len(encoder.ids(INSTRUCTION))
    states, _ = encoder.encode("red", True)
    assert len(states) == len(encoder.ids(INSTRUCTION + "red")) - count + 2
