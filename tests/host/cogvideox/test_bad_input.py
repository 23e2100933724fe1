"""Bad input to CogVideoX over HTTP: each time a clear error that says what to do, and a server that goes on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from .. import tiny_cogvideox as tiny
from ..test_bad_input import offered
from .http_graphs import (  # noqa: F401  random_models is a fixture
    LENGTH, MODEL, SIZE, T5, VAE, colour, conditioned, graph, load, random_models, sampler, write_video)
from ..test_stock_nodes import node

pytestmark = pytest.mark.usefixtures("random_models")


def refusal(server, **changes):
    return server.expect_error(graph(**changes))


def empty(**inputs):
    return node("SanaCogEmptyCogVideoXLatent", **dict(dict(width=SIZE, height=SIZE, length=LENGTH, batch_size=1), **inputs))


# Files

@pytest.mark.parametrize("kind, name, change", [
    ("diffusion_models", MODEL, lambda name: {"model": load(name)}),
    ("vae", VAE, lambda name: {"vae": node("SanaCogLoadCogVideoXVAE", vae_name=name)}),
    ("text_encoders", T5, lambda name: {"clip": node("SanaCogLoadCogVideoXTextEncoder", text_encoder_name=name,
                                                     tokenizer_name="auto")})])
def test_damaged_files(server, kind, name, change):
    whole = server.base / "models" / kind / name
    path = offered(server, kind, f"truncated_{name}")
    path.write_bytes(whole.read_bytes()[:-1000])
    assert path.name in refusal(server, **change(path.name))
    path = offered(server, kind, f"page_{name}")
    path.write_text("<!DOCTYPE html><html>Not Found</html>")
    assert path.name in refusal(server, **change(path.name))
    path, tensors = offered(server, kind, f"missing_{name}"), load_file(whole)
    gone = {"diffusion_models": "proj_out.bias", "vae": "decoder.conv_out.conv.bias",
            "text_encoders": "encoder.block.1.layer.1.DenseReluDense.wo.weight"}[kind]
    del tensors[gone]
    save_file(tensors, path, metadata={"config": '{"sample_height": 12, "sample_width": 12, "norm_num_groups": 4}'})
    assert gone in refusal(server, **change(path.name))


def test_wrong_model_in_each_loader(server):
    from sanacog.headless import installation

    sana, ours = installation.ROOT / "models", server.base / "models"
    vae, te, model = "SanaCogLoadCogVideoXVAE", "SanaCogLoadCogVideoXTextEncoder", "SanaCogLoadCogVideoXModel"
    sources = [(ours / "vae" / VAE, "Load CogVideoX VAE"), (ours / "text_encoders" / T5, "Load CogVideoX Text Encoder"),
               (ours / "diffusion_models" / MODEL, "Load CogVideoX Model"),
               (sana / "diffusion_models" / "sanacog_tiny_sana.safetensors", "Sana"),
               (sana / "vae" / "sanacog_tiny_dcae.safetensors", "DC-AE"),
               (sana / "text_encoders" / "sanacog_tiny_gemma2.safetensors", "")]
    for loader, kind, own, change in (
            (model, "diffusion_models", 2, lambda name: {"model": load(name)}),
            (vae, "vae", 0, lambda name: {"vae": node(vae, vae_name=name)}),
            (te, "text_encoders", 1, lambda name: {"clip": node(te, text_encoder_name=name, tokenizer_name="auto")})):
        for i, (source, said) in enumerate(sources):
            if i != own:
                path = offered(server, kind, f"wrong_{i}.safetensors")
                path.write_bytes(source.read_bytes())
                answer = refusal(server, **change(path.name))
                assert path.name in answer and said in answer, f"{source.name} in {loader}: {answer}"


def test_models_of_this_pack_in_sanas_loaders(server):
    for kind, name, loader, inputs in (
            ("diffusion_models", MODEL, "SanaCogLoadSanaModel", dict(weight_dtype="default")),
            ("vae", VAE, "SanaCogLoadDCAE", {}),
            ("text_encoders", T5, "SanaCogLoadSanaTextEncoder", dict(tokenizer_name="auto"))):
        key = {"diffusion_models": "model_name", "vae": "vae_name", "text_encoders": "text_encoder_name"}[kind]
        names = {"diffusion_models": "model", "vae": "vae", "text_encoders": "clip"}
        answer = refusal(server, **{names[kind]: node(loader, **{key: name}, **inputs)})
        assert name in answer and "looks like" in answer or "this is" in answer, answer


def test_names_and_choices_that_are_not_offered(server):
    assert "gone.safetensors" in refusal(server, model=load("gone.safetensors"))
    assert "weight_dtype" in refusal(server, model=load(weight_dtype="int3"))
    assert "conditioning" in refusal(server, model=load(conditioning="smell"))
    answer = refusal(server, model=load(conditioning="inpaint"))
    assert "inpaint" in answer and "channels" in answer


# Text

def sana_text():
    return {"gemma": node("SanaCogLoadSanaTextEncoder", text_encoder_name="sanacog_tiny_gemma2.safetensors",
                          tokenizer_name="auto"),
            "positive": node("CLIPTextEncode", clip=["gemma", 0], text="a red circle")}


def test_text_of_sana(server):
    answer = refusal(server, **sana_text())
    assert "96" in answer and str(tiny.TEXT_WIDTH) in answer and "Load CogVideoX Text Encoder" in answer


def test_text_of_cogvideox_in_sana(server):
    answer = refusal(server, model=node("SanaCogLoadSanaModel", model_name="sanacog_tiny_sana.safetensors",
                                        weight_dtype="default"),
                     latent=node("SanaCogEmptySanaLatent", width=256, height=256, batch_size=1))
    assert "96" in answer and str(tiny.TEXT_WIDTH) in answer and "Load Sana Text Encoder" in answer


def test_sana_text_encode_with_our_clip(server):
    answer = refusal(server, positive=node("SanaCogSanaTextEncode", clip=["clip", 0], text="a", instruction=True))
    assert "Load Sana Text Encoder" in answer


# Sizes

@pytest.mark.parametrize("inputs", [dict(length=10), dict(length=0), dict(length=-3), dict(width=100), dict(height=0),
                                    dict(height=-16), dict(batch_size=0)])
def test_sizes(server, inputs):
    assert next(iter(inputs)) in refusal(server, latent=empty(**inputs))
    answer = refusal(server, **conditioned("ImageToVideo", "random_i2v.safetensors", start_image=["picture", 0]) | {
        "picture": colour(0)} | {"given": node("SanaCogCogVideoXImageToVideo", positive=["positive", 0],
                                               negative=["negative", 0], vae=["vae", 0], start_image=["picture", 0],
                                               **dict(dict(width=SIZE, height=SIZE, length=LENGTH, batch_size=1), **inputs))})
    assert next(iter(inputs)) in answer


def test_request_that_cannot_fit(server):
    """2,001 frames or more, refused at once and with figures: by the sampler, the decoder, and the node that would make
    the pixels of a whole clip."""
    wide = replace(tiny.PARAMS, num_layers=1, num_attention_heads=16, attention_head_dim=64)
    tiny.save_transformer(offered(server, "diffusion_models", "wide.safetensors"), wide)
    memory = server.get("/system_stats")["devices"][0]["vram_total"]
    of_a_latent_frame = (768 // 8) * (1360 // 8) * 4 * (10 * wide.width // 4)  # bytes of activations, see host/cogvideox/model.py
    length = max(2001, 4 * (3 * memory // (2 * of_a_latent_frame)) + 1)
    latent = empty(width=1360, height=768, length=length)
    large = empty(width=2048, height=2048, length=length)
    pixels = node("SanaCogCogVideoXFunInpaint", positive=["positive", 0], negative=["negative", 0], vae=["vae", 0],
                  width=4096, height=4096, length=length, batch_size=1, start_image=["picture", 0])
    for changes in (
            {"model": load("wide.safetensors"), "latent": latent},
            {"latent": large, "decode": node("VAEDecode", samples=["latent", 0], vae=["vae", 0])},
            conditioned("FunInpaint", "random_inp.safetensors") | {"picture": colour(0), "given": pixels}):
        answer = refusal(server, **changes)
        assert f"{length} frames" in answer and "GiB" in answer, answer


@pytest.mark.parametrize("name, tensor, said", [
    ("sd", torch.randn(1, 4, 32, 32), "Empty CogVideoX Latent"),
    ("nan_video", torch.full((1, 16, 3, 12, 12), float("nan")), "NaN")])
def test_latents(server, name, tensor, said):
    save_file({"latent_tensor": tensor, "latent_format_version_0": torch.tensor([])}, server.base / "input" / f"{name}.latent")
    latent = node("LoadLatent", latent=f"{name}.latent")
    assert said in refusal(server, latent=latent, sampler=sampler(denoise=0.5))
    answer = refusal(server, latent=latent, decode=node("VAEDecode", samples=["latent", 0], vae=["vae", 0]))
    assert "another model" in answer or "NaN" in answer


def test_latent_of_sana(server):
    """A drawn one: ComfyUI makes an empty one fit any model."""
    dcae = node("SanaCogLoadDCAE", vae_name="sanacog_tiny_dcae.safetensors")
    answer = refusal(server, dcae=dcae, picture=colour(0xFF0000), sampler=sampler(denoise=0.5),
                     latent=node("VAEEncode", pixels=["picture", 0], vae=["dcae", 0]))
    assert "Empty CogVideoX Latent" in answer


# Pictures and videos

def from_video(server, name, **changes):
    nodes = {"load": node("LoadVideo", file=name), "frames": node("GetVideoComponents", video=["load", 0])}
    return graph(**nodes | changes)


def control(**inputs):
    return conditioned("FunControl", "random_control.safetensors", control_video=["frames", 0], **inputs)


def test_sound_file_as_video(server):
    import av

    path = server.base / "input" / "sound.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        for i in range(8):
            frame.pts = 1024 * i
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    assert server.expect_error(from_video(server, "sound.mp4", **control()))
    assert server.expect_error(from_video(server, "sound.mp4", latent=node("VAEEncode", pixels=["frames", 0],
                                                                           vae=["vae", 0])))


def test_video_of_one_frame(server):
    write_video(server.base / "input" / "one.mp4", np.full((1, SIZE, SIZE, 3), 128, np.uint8))
    answer = server.expect_error(from_video(server, "one.mp4", **control()))
    assert "has 1 frame, length asks for 9" in answer
    encoded = node("VAEEncode", pixels=["frames", 0], vae=["vae", 0])
    images = server.run_prompt(from_video(server, "one.mp4", latent=encoded, sampler=sampler(denoise=0.5))).images
    assert len(images) == 1, "of one frame it is a picture"


def test_picture_of_another_size_is_taken(server):
    for size in (16, 640):
        images = server.run_prompt(graph(picture=colour(0x80FF, size), **conditioned(
            "ImageToVideo", "random_i2v.safetensors", start_image=["picture", 0]))).images
        assert len(images) == LENGTH and images[0].shape == (SIZE, SIZE, 3)
    tiny_one = conditioned("ImageToVideo", "random_i2v.safetensors", start_image=["picture", 0])
    assert "start_image is 4 x 4 px" in refusal(server, picture=colour(0, 4), **tiny_one)


def test_picture_too_small_to_encode(server):
    small = node("EmptyImage", width=4, height=4, batch_size=1, color=0)
    assert "8" in refusal(server, small=small, latent=node("VAEEncode", pixels=["small", 0], vae=["vae", 0]))


def test_vae_of_sana(server):
    dcae = node("SanaCogLoadDCAE", vae_name="sanacog_tiny_dcae.safetensors")
    given = conditioned("ImageToVideo", "random_i2v.safetensors", start_image=["picture", 0])
    assert "Load CogVideoX VAE" in refusal(server, picture=colour(0), vae=dcae, **given)
    assert "another model" in refusal(server, vae=dcae)


def test_conditions_that_a_model_does_not_take(server):
    picture = {"picture": colour(0)}
    with_picture = conditioned("ImageToVideo", MODEL, start_image=["picture", 0])
    assert "text alone" in refusal(server, **picture | with_picture)
    with_mask = conditioned("FunInpaint", "random_i2v.safetensors", start_image=["picture", 0])
    assert "CogVideoX Image to Video" in refusal(server, **picture | with_mask)
    without_mask = conditioned("ImageToVideo", "random_inp.safetensors", start_image=["picture", 0])
    assert "CogVideoX Fun Inpaint" in refusal(server, **picture | without_mask)
    other_size = with_picture | {"model": load("random_i2v.safetensors"), "latent": empty(width=SIZE + 16),
                                 "sampler": sampler(positive=["given", 0], negative=["given", 1])}
    assert "Use the latent of the same node" in refusal(server, **picture | other_size)


def test_samplers_of_cogvideox_refuse_sana(server):
    sana = node("SanaCogLoadSanaModel", model_name="sanacog_tiny_sana.safetensors", weight_dtype="default")
    answer = refusal(server, model=sana, sigmas=node("SanaCogCogVideoXSigmas", model=["model", 0], steps=4, denoise=1.0),
                     guider=node("CFGGuider", model=["model", 0], positive=["positive", 0], negative=["negative", 0],
                                 cfg=1.0),
                     noise=node("RandomNoise", noise_seed=1), select=node("SanaCogCogVideoXDDIM"),
                     sampler=node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["select", 0],
                                  sigmas=["sigmas", 0], latent_image=["latent", 0]))
    assert "Load CogVideoX Model" in answer
