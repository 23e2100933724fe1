"""What the transformers hand to the host's attention, and an attention in its place that overflows: told by its name."""

import logging

import pytest
import torch

from . import tiny, tiny_cogvideox as tinycog
from .cogvideox import video_model
from .sana import sana_model
from .sana.sana_model import host  # noqa: F401

FAMILIES = ("sana", "cogvideox")


@pytest.fixture(scope="module")
def load(host, tmp_path_factory):
    from sanacog.host.cogvideox import model as cogvideox

    folder = tmp_path_factory.mktemp("attention")
    files = {"sana": tiny.save_sana(folder / "sana.safetensors"),
             "cogvideox": tinycog.save_transformer(folder / "cogvideox.safetensors")}
    return lambda name: (host.sana.load_sana if name == "sana" else cogvideox.load_cogvideox)(files[name])


def with_attention(model, function):
    """As the nodes for SageAttention do it."""
    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = function
    return clone


def sample(host, name, model):
    if name == "sana":
        return sana_model.sample(host, model, steps=1)
    start = video_model.noise()
    return host.comfy.sample.sample(model, start, 1, 3.0, "euler", "sgm_uniform", video_model.text(), video_model.text(1),
                                    torch.zeros_like(start), seed=0, disable_pbar=True)


def overflowing(func, q, k, v, heads, **kwargs):
    """An attention that computes in fp16 and leaves its range."""
    return (func(q, k, v, heads, **kwargs).half() * 1e6).to(q.dtype)


def exact(seen):
    def attention(func, q, k, v, heads, mask=None, **kwargs):
        seen.append((q.shape, k.shape, v.shape, heads, None if mask is None else mask.shape,
                     {key for key in kwargs if key not in ("transformer_options", "_inside_attn_wrapper")}))
        q, k, v = (t.double().unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        out = (logits if mask is None else logits + mask.double()).softmax(-1) @ v
        return out.transpose(1, 2).flatten(2).float()
    return attention


@pytest.mark.parametrize("name", FAMILIES)
def test_what_an_attention_is_given(host, load, name):
    """q, k, v (B, tokens, D) with the heads side by side, the scale of their width and no more: what every replacement
    takes."""
    seen, model = [], load(name)
    assert sana_model.apart(sample(host, name, with_attention(model, exact(seen))), sample(host, name, model)) < 1e-5
    if name == "sana":
        assert {entry[:4] for entry in seen} == {((4, 35, 64), (4, 9, 64), (4, 9, 64), 2)}
    else:
        tokens = tinycog.TOKENS + 3 * 2 * 3
        assert {entry[:4] for entry in seen} == {((2, tokens, 64),) * 3 + (2,)} and {entry[4] for entry in seen} == {None}
    assert all(not entry[5] for entry in seen)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_overflow_names_the_attention(host, load, name):
    model = load(name)
    told = (f"{name}.safetensors: its first result holds NaN or infinite numbers with the attention of "
            "tests.*overflowing, and none with PyTorch's own.*Take the node out that sets it")
    with pytest.raises(ValueError, match=told):
        sample(host, name, with_attention(model, overflowing))
    assert sample(host, name, model).isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_an_attention_of_an_option(host, load, monkeypatch, name):
    from comfy.ldm.modules import attention as host_attention

    def attention_sage(q, k, v, heads, **kwargs):
        return overflowing(host_attention.attention_pytorch, q, k, v, heads, **kwargs)

    monkeypatch.setattr(host_attention, "optimized_attention", attention_sage)
    with pytest.raises(ValueError, match="attention_sage, and none with PyTorch's own.*without the option that chooses it"):
        sample(host, name, load(name))


def test_another_cause_is_not_the_attentions(host, load, caplog):
    model = with_attention(load("sana"), lambda func, *args, **kwargs: func(*args, **kwargs))
    positive = sana_model.conditioning(9)
    positive[0][0][:, 0] = torch.inf
    with caplog.at_level(logging.WARNING):
        sana_model.sample(host, model, steps=1, positive=positive)
    assert "its weights do not: what went in does" in caplog.text


def test_which_attention_is_the_hosts_own(host, monkeypatch):
    from comfy.ldm.modules import attention as host_attention

    from sanacog.host import blocks

    for name in blocks.OWN:
        monkeypatch.setattr(host_attention, "optimized_attention", getattr(host_attention, name))
        assert blocks.replaced_attention({}) is None
    assert blocks.replaced_attention({blocks.OVERRIDE: overflowing}).endswith("test_attention.overflowing")
    from sanacog.host.editing.structure import seeing_both

    assert blocks.replaced_attention(seeing_both({}, 0)) is None
    assert blocks.replaced_attention(seeing_both({blocks.OVERRIDE: overflowing}, 0)).endswith("test_attention.overflowing")
