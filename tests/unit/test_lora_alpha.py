"""What PEFT's configuration says of alpha, and when it is about a file at all."""

import json
import re

import pytest

from sanacog.host.lora_alpha import BESIDE, METADATA, PeftConfig, config_beside, peft_configs


@pytest.mark.parametrize("file, others, sure", [
    ("adapter_model.safetensors", ["other.safetensors"], True),
    ("adapter_model.bin", ["adapter_model.safetensors"], True),
    ("style.safetensors", ["README.md", "style.png"], True),
    ("style.safetensors", ["other.bin"], False),
    ("style.safetensors", ["adapter_model.safetensors"], False),
])
def test_whose_the_configuration_is(tmp_path, file, others, sure):
    for name in (file, *others):
        (tmp_path / name).touch()
    assert config_beside(tmp_path / file) is None
    (tmp_path / BESIDE).write_text("{}")
    assert config_beside(tmp_path / file) == (tmp_path / BESIDE if sure else None)


def test_the_files_own_comes_first(tmp_path):
    (tmp_path / "style.safetensors").touch()
    (tmp_path / BESIDE).write_text('{"lora_alpha": 1}')
    own, beside = peft_configs(tmp_path / "style.safetensors", {METADATA: json.dumps({"transformer.lora_alpha": 2})})
    assert (own.alpha("transformer", ["x"], 4), beside.alpha("transformer", ["x"], 4)) == (2, 1)
    assert own.alpha("text_encoder", ["x"], 4) is None and beside.source == BESIDE


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"3", b'{"r": "4"}', b'{"rank_pattern": [1]}',
                                     b'{"transformer.lora_alpha": []}'])
def test_one_that_cannot_be_read_is_warned_of(tmp_path, caplog, content):
    (tmp_path / "style.safetensors").touch()
    (tmp_path / BESIDE).write_bytes(content)
    assert peft_configs(tmp_path / "style.safetensors", {}) == []
    assert "style.safetensors" in caplog.text and BESIDE in caplog.text and "damaged" in caplog.text


def test_null_is_like_nothing(tmp_path):
    (tmp_path / "style.safetensors").touch()
    (tmp_path / BESIDE).write_text('{"r": null, "lora_alpha": null, "alpha_pattern": null, "rank_pattern": null}')
    [config] = peft_configs(tmp_path / "style.safetensors", {})
    assert config.alpha("transformer", ["x"], 4) is None and config.rank("transformer", ["x"]) is None


@pytest.mark.parametrize("pattern", ["to_q", "attn1.to_q", "blocks.3.attn1.to_q", r"blocks.\d.attn1.to_q", "to_k|to_q", "o_q",
                                     "attn2.to_q", r"^blocks.3.attn1.to_q", ".*to_q"])
def test_patterns_mean_what_they_mean_to_peft(pattern):
    from peft.utils.other import get_pattern_key

    name = "blocks.3.attn1.to_q"
    config = PeftConfig("", {"r": 8, "rank_pattern": {"nothing": 1, pattern: 2, name: 3}})
    wanted = {"nothing": 1, pattern: 2, name: 3}[get_pattern_key(config.values["rank_pattern"], name)]
    assert config.rank("transformer", [name]) == wanted and re.compile(pattern)
