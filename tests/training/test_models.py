"""Models of every layout come to the same network, in the type and form that was asked for."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from sanacog.cogvideo_core import checkpoint as cogvideo_checkpoint
from sanacog.sana_core import autoencoder_checkpoint, checkpoint, video_checkpoint
from sanacog.training.models import Models
from sanacog.training.quantised_linear import QuantisedLinear

from .runs import sana_video

ROOT = Path(__file__).resolve().parents[2]
FILES = {"sana": ("diffusion_models/sanacog_tiny_sana", "vae/sanacog_tiny_dcae", "text_encoders/sanacog_tiny_gemma2"),
         "cogvideox": ("diffusion_models/sanacog_tiny_cogvideox", "vae/sanacog_tiny_cogvideox_vae",
                       "text_encoders/sanacog_tiny_t5")}
LAYOUTS = [("sana", "nvlabs", checkpoint), ("cogvideox", "sat", cogvideo_checkpoint), ("cogvideox", "comfy", cogvideo_checkpoint)]


def settings(family, **more):
    transformer, autoencoder, text = (str(ROOT / "models" / f"{name}.safetensors") for name in FILES[family])
    given = {"family": family, "transformer": transformer, "autoencoder": autoencoder, "text_encoder": text}
    return SimpleNamespace(**given | more)


def inputs(network, family):
    generator = torch.Generator().manual_seed(0)
    shape = (2, 32, 4, 6) if family == "sana" else (2, 16, 3, 8, 12)
    return torch.randn(shape, generator=generator), torch.tensor([200.0, 700.0]), torch.randn(2, 9, 96, generator=generator)


@pytest.mark.parametrize("family, layout, door", LAYOUTS)
def test_native_files_are_the_same_network(tmp_path, family, layout, door):
    ours = Models(settings(family))
    network = ours.transformer(torch.float32)
    tensors = door.from_canonical(network.state_dict(), layout)
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "native.safetensors",
                                {"format": "pt", "config": json.dumps(dataclasses.asdict(ours.params))})
    native = Models(settings(family, transformer=str(tmp_path / "native.safetensors")))
    assert native.identity.layout == layout
    given = inputs(network, family)
    with torch.no_grad():
        assert torch.equal(network(*given), native.transformer(torch.float32)(*given))


@pytest.mark.parametrize("second", [False, True], ids=["first", "2.0"])
def test_native_sana_video_is_the_same_network(tmp_path, second):
    given = {"family": "sana_video", "latents": "cogvideox", "autoencoder": None, "text_encoder": None}
    ours = Models(SimpleNamespace(**given, transformer=sana_video(tmp_path / "a.safetensors", second)))
    tensors = video_checkpoint.from_canonical(ours.transformer(torch.float32).state_dict(), "nvlabs")
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "native.safetensors",
                                {"config": json.dumps(dataclasses.asdict(ours.params))})
    native = Models(SimpleNamespace(**given, transformer=tmp_path / "native.safetensors"))
    assert native.identity.layout == "nvlabs" and native.scale == 0.7
    x, t, context = inputs(None, "sana_video")
    with torch.no_grad():
        assert torch.equal(*(models.transformer(torch.float32)(x, t, context) for models in (ours, native)))
    with pytest.raises(ValueError, match="whose latents are cogvideox, and model.latents is wan"):
        Models(SimpleNamespace(**given | {"latents": "wan"}, transformer=tmp_path / "native.safetensors"))


def test_native_autoencoder_is_the_same(tmp_path):
    ours = Models(settings("sana")).autoencoder()
    tensors = autoencoder_checkpoint.from_canonical(ours.state_dict(), "efficientvit")
    config = safetensors.safe_open(settings("sana").autoencoder, "pt").metadata()
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "vae.safetensors", config)
    other = Models(settings("sana", autoencoder=str(tmp_path / "vae.safetensors")))
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        assert torch.allclose(ours.encode(x), other.autoencoder().encode(x), atol=1e-6)
    assert other.scale == pytest.approx(0.41407)


def test_parts_of_a_diffusers_repository_are_found(tmp_path):
    for folder, name in zip(("transformer", "vae", "text_encoder"), FILES["cogvideox"]):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").symlink_to(ROOT / "models" / f"{name}.safetensors")
    (tmp_path / "model_index.json").write_text("{}")
    for place in (tmp_path, tmp_path / "transformer", tmp_path / "transformer" / "model.safetensors"):
        models = Models(settings("cogvideox", transformer=str(place), autoencoder=None, text_encoder=None))
        assert models.files("autoencoder") == (tmp_path / "vae" / "model.safetensors",)
        assert models.text_encoder().length == 32
    with pytest.raises(FileNotFoundError, match="model.autoencoder: nothing given"):
        Models(settings("cogvideox", autoencoder=None)).autoencoder()


def test_another_models_file_is_refused():
    with pytest.raises(ValueError, match="CogVideoX"):
        Models(settings("sana", transformer=settings("cogvideox").transformer))
    with pytest.raises(ValueError, match="Gemma-2"):
        Models(settings("sana", text_encoder=settings("cogvideox").text_encoder)).text_encoder()


@pytest.mark.parametrize("family", FILES)
@pytest.mark.parametrize("kind, most", (("int8", (0.02, 0.05)), ("fp8", (0.08, 0.15))))
def test_eight_bits_are_close_and_let_gradients_through(family, kind, most):
    models = Models(settings(family))
    plain, small = models.transformer(torch.float32), models.transformer(torch.float32, kind)
    layers = [m for m in small.modules() if isinstance(m, QuantisedLinear)]
    assert len(layers) > 20 and all(m.weight.element_size() == 1 for m in layers)
    x, t, context = inputs(plain, family)
    answers, gradients = [], []
    for network in (plain, small):
        given = x.clone().requires_grad_(True)
        answers.append(network(given, t, context))
        answers[-1].square().sum().backward()
        gradients.append(given.grad)
    errors = [((one - other).norm() / one.norm()).item() for one, other in (answers, gradients)]
    assert 0 < errors[0] < most[0] and 0 < errors[1] < most[1]


def test_gradient_of_eight_bits_is_that_of_the_matrix_they_mean():
    layer = torch.nn.Linear(32, 16)
    from sanacog.kernels.quant import dequantise, quantise

    tensors, entry = quantise(layer.weight.detach(), "int8")
    small = QuantisedLinear(layer, entry)
    small.load_state_dict(tensors | {"bias": layer.bias.detach()}, assign=True)
    x = torch.randn(5, 32, requires_grad=True)
    small(x).square().sum().backward()
    twin = x.detach().clone().requires_grad_(True)
    torch.nn.functional.linear(twin, dequantise(tensors, entry), layer.bias).square().sum().backward()
    assert torch.allclose(x.grad, twin.grad, rtol=1e-5, atol=1e-5)


def test_weights_are_a_copy_of_the_file():
    models = Models(settings("sana"))
    network = models.transformer(torch.float16)
    with torch.no_grad():
        network.proj_out.weight.zero_()
    assert models.transformer(torch.float16).proj_out.weight.abs().sum() > 0
    assert not any(p.requires_grad for p in network.parameters())


def test_meta_has_the_bytes_and_reads_nothing():
    models = Models(settings("sana"))
    for kind in ("none", "int8"):
        real, meta = models.transformer(torch.bfloat16, kind), models.transformer(torch.bfloat16, kind, meta=True)
        sizes = [[(name, t.shape, t.dtype) for name, t in sorted(network.state_dict().items())] for network in (real, meta)]
        assert sizes[0] == sizes[1] and all(t.is_meta for t in meta.state_dict().values())
