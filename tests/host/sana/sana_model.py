"""Sana in the real host on random tiny weights: fixtures and runs that several test files share."""

from types import SimpleNamespace

import pytest
import torch

from .. import tiny

PROMPT = "a large red circle on a blue background"
MARK = {"sana_text": True}  # of texts from Sana's encoder


@pytest.fixture(scope="module")
def host(comfyui_path):
    tiny.import_host(comfyui_path)
    import comfy.model_management
    import comfy.sample
    import comfy.samplers
    import comfy.sd
    import comfy.utils

    from sanacog.host import files, loading, samplers
    from sanacog.host.sana import model as sana, sampling, text, vae

    with torch.inference_mode():  # as the host runs its nodes
        yield SimpleNamespace(comfy=comfy, files=files, loading=loading, samplers=samplers, sampling=sampling, sana=sana, text=text,
                              vae=vae)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return SimpleNamespace(folder=folder, sana=tiny.save_sana(folder / "sana.safetensors"),
                           gemma=tiny.save_gemma(folder / "gemma.safetensors"),
                           dcae=tiny.save_dcae(folder / "dcae.safetensors"))


@pytest.fixture
def model(host, weights):
    return host.sana.load_sana(weights.sana)


@pytest.fixture(scope="module")
def clip(host, weights):
    return host.text.load_text_encoder(weights.gemma)


@pytest.fixture(scope="module")
def vae(host, weights):
    return host.vae.load_dcae(weights.dcae)


def conditioning(count, width=tiny.CAPTION, seed=0, length=300):
    """What Sana Text Encode gives for a prompt of `count` tokens."""
    states = torch.zeros(1, length, width)
    states[:, :count] = torch.randn(1, count, width, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(1, length, dtype=torch.long)
    mask[:, :count] = 1
    return [[states, {"attention_mask": mask, "pooled_output": None} | MARK]]


def noise(batch=2, height=5, width=7, channels=32):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(7))


def sample(host, model, latent=None, positive=None, negative=None, cfg=4.5, sampler="euler", steps=3, start=None, **kw):
    start = noise() if start is None else start
    latent = torch.zeros_like(start) if latent is None else latent
    return host.comfy.sample.sample(model, start, steps, cfg, sampler, "simple",
                                    conditioning(9) if positive is None else positive,
                                    conditioning(1, seed=1) if negative is None else negative, latent,
                                    seed=0, disable_pbar=True, **kw)


def apart(a, b):
    """Relative L2 distance."""
    return float((a - b).norm() / b.norm())


def saved(host, model, path, clip=None, vae=None):
    host.comfy.sd.save_checkpoint(str(path), model, clip, vae)
    return path


def reference(text, instruction):
    """transformers' Gemma-2 and the pipeline's own recipe: pad, encode with a mask, keep BOS and the last 299."""
    import sentencepiece

    from sanacog.sana_core.text import INSTRUCTION

    spm = sentencepiece.SentencePieceProcessor(model_proto=tiny.sentencepiece_model())
    prompt = (INSTRUCTION if instruction else "") + text
    length = 300 + (len(spm.encode(INSTRUCTION)) + 1 - 2 if instruction else 0)
    ids = ([2] + spm.encode(prompt))[:length]
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids))])
    ids = torch.tensor([ids + [0] * (length - len(ids))])
    states = tiny.gemma()(ids, attention_mask=mask).last_hidden_state
    keep = [0] + list(range(length - 299, length))
    return states[:, keep], mask[:, keep]
