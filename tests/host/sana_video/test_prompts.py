"""SANA-Video Text Encode: the instruction that is asked for, and the score, go the way of Sana Text Encode."""

import pytest
import torch

from ..sana.sana_model import host, weights, clip  # noqa: F401  Sana's, whose text encoder it is


@pytest.mark.parametrize("instruction, same", [("as trained", True), ("diffusers", "video"), ("none", False)])
def test_text_encode(host, clip, instruction, same):
    [[found, values]] = host.text.encode_video_prompt(clip, "a red circle", 30, instruction)
    [[expected, others]] = host.text.encode_prompt(clip, "a red circle motion score: 30.", same)
    assert torch.equal(found, expected) and torch.equal(values["attention_mask"], others["attention_mask"])
    [[plain, _]] = host.text.encode_video_prompt(clip, "a red circle", 0, instruction)
    assert not torch.equal(plain, found)
    assert torch.equal(plain, host.text.encode_prompt(clip, "a red circle", same)[0][0])
