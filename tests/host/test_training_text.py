"""What training gives a network of a prompt is what the nodes give it."""

from pathlib import Path

import pytest
import torch

from . import tiny

MODELS = Path(__file__).resolve().parents[2] / "models" / "text_encoders"
PROMPTS = ("", "a red circle on a blue background", "a large yellow star at the top, purple background")


@pytest.fixture(scope="module", autouse=True)
def host(comfyui_path):
    tiny.import_host(comfyui_path)
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("instruction", (False, True))
@pytest.mark.parametrize("prompt", PROMPTS)
def test_sana(prompt, instruction):
    from sanacog.host.sana.text import encode_prompt, load_text_encoder
    from sanacog.training.text import Gemma

    path = MODELS / "sanacog_tiny_gemma2.safetensors"
    [(expected, values)] = encode_prompt(load_text_encoder(path), prompt, instruction)
    states, mask = Gemma(path).encode(prompt, instruction)
    assert values["attention_mask"].sum() == mask.sum() == len(states)
    expected = expected[0, values["attention_mask"][0].bool()].float()
    assert (states - expected).norm() < 1e-4 * expected.norm()


def test_sanas_empty_prompt_under_another_mask():
    from sanacog.host.sana.text import encode_nvlabs_negative, encode_prompt, load_text_encoder
    from sanacog.training.text import Gemma

    path = MODELS / "sanacog_tiny_gemma2.safetensors"
    clip = load_text_encoder(path)
    positive = encode_prompt(clip, PROMPTS[1], True)
    [(expected, values)] = encode_nvlabs_negative(clip, positive)
    count = int(values["attention_mask"].sum())
    states, _ = Gemma(path).encode_empty()
    assert (states[:count] - expected[0, :count]).norm() < 1e-4 * expected[0, :count].norm()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_cogvideox(prompt):
    from sanacog.host.cogvideox.text import load_t5
    from sanacog.training.text import T5

    path = MODELS / "sanacog_tiny_t5.safetensors"
    clip = load_t5(path)
    expected = clip.encode_from_tokens(clip.tokenize(prompt))[0].float()
    states, _ = T5(path, 226).encode(prompt)
    assert states.shape == expected.shape and (states - expected).norm() < 1e-4 * expected.norm()
    assert torch.isfinite(states).all()
