"""Bad input over HTTP: each time a clear error that says what to do, no picture, and a server that goes on."""

import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from .test_stock_nodes import TINY, graph, node, sampler


@pytest.fixture(scope="module")
def tiny(server):
    """The embedded transformer's tensors."""
    from sanacog.headless import installation

    return load_file(installation.ROOT / "models" / "diffusion_models" / TINY)


def offered(server, kind, name):
    """The path of a new model file."""
    folder = server.base / "models" / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def refusal(server, name):
    return server.expect_error(graph(model=node("SanaCogLoadSanaModel", model_name=name, weight_dtype="default")))


class Harmful:
    def __reduce__(self):
        return (open, ("harm.txt", "w"))


def test_truncated_file(server, tiny):
    path = offered(server, "diffusion_models", "truncated.safetensors")
    save_file(tiny, path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "truncated.safetensors" in refusal(server, path.name)


def test_text_file(server):
    path = offered(server, "diffusion_models", "page.safetensors")
    path.write_text("<!DOCTYPE html><html>Not Found</html>")
    assert "page.safetensors" in refusal(server, path.name)


def test_pickle_with_code(server):
    path = offered(server, "diffusion_models", "harmful.pth")
    path.write_bytes(pickle.dumps({"state_dict": Harmful()}))
    assert "harmful.pth" in refusal(server, path.name)
    assert not list(server.base.rglob("harm.txt"))


def test_missing_and_extra_keys(server, tiny):
    path = offered(server, "diffusion_models", "missing.safetensors")
    save_file({key: t for key, t in tiny.items() if key != "proj_out.bias"},
              path, metadata={"config": '{"num_cross_attention_heads": 4}'})
    assert "proj_out.bias" in refusal(server, path.name)
    path = offered(server, "diffusion_models", "extra.safetensors")
    save_file(tiny | {"surprise.weight": torch.zeros(2)}, path, metadata={"config": '{"num_cross_attention_heads": 4}'})
    assert "surprise.weight" in refusal(server, path.name)


def test_wrong_model_in_each_loader(server, tiny):
    from sanacog.headless import installation

    models = installation.ROOT / "models"
    for kind, name, source, said in (
            ("diffusion_models", "a_vae.safetensors", "vae/sanacog_tiny_dcae.safetensors", "Load DC-AE"),
            ("vae", "a_gemma.safetensors", "text_encoders/sanacog_tiny_gemma2.safetensors", "Load Sana Text Encoder"),
            ("text_encoders", "a_sana.safetensors", f"diffusion_models/{TINY}", "Load Sana Model")):
        offered(server, kind, name).write_bytes((models / source).read_bytes())
        loader = {"diffusion_models": dict(model=node("SanaCogLoadSanaModel", model_name=name, weight_dtype="default")),
                  "vae": dict(vae=node("SanaCogLoadDCAE", vae_name=name)),
                  "text_encoders": dict(clip=node("SanaCogLoadSanaTextEncoder", text_encoder_name=name,
                                                  tokenizer_name="auto"))}[kind]
        answer = server.expect_error(graph(**loader))
        assert name in answer and said in answer


def test_missing_tokenizer(server):
    from sanacog.headless import installation

    tensors = load_file(installation.ROOT / "models" / "text_encoders" / "sanacog_tiny_gemma2.safetensors")
    path = offered(server, "text_encoders", "bare.safetensors")
    save_file({key: t for key, t in tensors.items() if key != "spiece_model"}, path)
    answer = server.expect_error(graph(clip=node("SanaCogLoadSanaTextEncoder", text_encoder_name=path.name,
                                                 tokenizer_name="auto")))
    assert "tokenizer.model" in answer


def test_text_of_another_model(server):
    from . import tiny as random

    # The width of another encoder is all that shows; random weights of width 64 stand for a T5 here.
    random.save_gemma(offered(server, "text_encoders", "narrow.safetensors"))
    answer = server.expect_error(graph(clip=node("SanaCogLoadSanaTextEncoder", text_encoder_name="narrow.safetensors",
                                                 tokenizer_name="auto")))
    assert "64" in answer and "96" in answer and "Sana Text Encode" in answer


@pytest.mark.parametrize("name, tensor, said", [
    ("sd", torch.randn(1, 4, 32, 32), "Empty Sana Latent"), ("nan", torch.full((1, 32, 8, 8), float("nan")), "NaN")])
def test_latents(server, name, tensor, said):
    save_file({"latent_tensor": tensor, "latent_format_version_0": torch.tensor([])}, server.base / "input" / f"{name}.latent")
    load = node("LoadLatent", latent=f"{name}.latent")
    assert said in server.expect_error(graph(latent=load, sampler=sampler(denoise=0.5)))
    answer = server.expect_error(graph(latent=load, decode=node("VAEDecode", samples=["latent", 0], vae=["vae", 0])))
    assert "another model" in answer or "NaN" in answer


def test_stock_empty_latent_of_an_old_host(server):
    from sanacog.headless import installation

    latent = node("EmptyLatentImage", width=256, height=256, batch_size=1)
    version = (installation.host() / "comfyui_version.py").read_text().split('"')[1]
    if tuple(map(int, version.split(".")[:2])) < (0, 11):
        answer = server.expect_error(graph(latent=latent))
        assert "1024 x 1024" in answer and "Empty Sana Latent" in answer
    else:
        image, = server.run_prompt(graph(latent=latent)).images
        assert image.shape == (256, 256, 3)


@pytest.mark.parametrize("inputs", [dict(width=100), dict(height=0), dict(width=-32), dict(batch_size=0)])
def test_sizes(server, inputs):
    latent = node("SanaCogEmptySanaLatent", **(dict(width=256, height=256, batch_size=1) | inputs))
    assert next(iter(inputs)) in server.expect_error(graph(latent=latent))


def test_picture_too_small(server):
    small = node("EmptyImage", width=16, height=16, batch_size=1, color=0)
    assert "32 x 32" in server.expect_error(graph(
        small=small, latent=node("VAEEncode", pixels=["small", 0], vae=["vae", 0])))


def test_names_that_are_not_offered(server):
    answer = server.expect_error(graph(clip=node("SanaCogLoadSanaTextEncoder", tokenizer_name="../../secret.model",
                                                 text_encoder_name="sanacog_tiny_gemma2.safetensors")))
    assert "tokenizer" in answer
    answer = server.expect_error(graph(model=node("SanaCogLoadSanaModel", model_name=TINY, weight_dtype="int3")))
    assert "weight_dtype" in answer
