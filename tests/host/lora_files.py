"""LoRA files with random numbers, and the tiny models that they are for."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from . import tiny
from . import tiny_cogvideox as tinycog

SANA_Q, VIDEO_Q = "transformer_blocks.1.attn2.to_q", "transformer_blocks.1.attn1.to_q"


@pytest.fixture(scope="module")
def host(comfyui_path):
    tiny.import_host(comfyui_path)
    import comfy.lora
    import comfy.sd

    from sanacog.host.cogvideox import model as cogvideox
    from sanacog.host import lora
    from sanacog.host.sana import model as sana, text

    with torch.inference_mode():
        yield SimpleNamespace(comfy=comfy, cogvideox=cogvideox, lora=lora, sana=sana, text=text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def sana(host, folder):
    return host.sana.load_sana(tiny.save_sana(folder / "sana.safetensors"))


@pytest.fixture(scope="module")
def video(host, folder):
    return host.cogvideox.load_cogvideox(tinycog.save_transformer(folder / "cogvideox.safetensors"))


@pytest.fixture(scope="module")
def clip(host, folder):
    return host.text.load_text_encoder(tiny.save_gemma(folder / "gemma.safetensors"))


def matrices(rows, columns, rank=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)


def saved(path, stems, down=".lora_A.weight", up=".lora_B.weight", metadata=None, **more):
    """A LoRA file. stems: {name: (A, B)}."""
    tensors = {stem + end: t.clone() for stem, pair in stems.items() for end, t in zip((down, up), pair)}
    save_file(tensors | more, path, metadata=metadata)
    return path


def changed(host, patcher, key):
    """(the weight with its patches, as it was)"""
    weight = dict(patcher.model.named_parameters())[key].detach()
    return host.comfy.lora.calculate_weight(patcher.patches[key], weight.clone().float(), key), weight.float()


def written(path, tensors, metadata=None):
    """A file of these tensors as they are."""
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path, metadata=metadata)
    return path
