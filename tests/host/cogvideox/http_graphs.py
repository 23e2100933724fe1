"""Random tiny CogVideoX models in a running ComfyUI, and graphs of them, for test_http*.py.

The models are random, so that nothing there depends on how well the embedded ones are trained.
"""

import numpy as np
import pytest

from .. import tiny_cogvideox as tiny
from ..test_stock_nodes import node

SIZE, LENGTH = 96, 9
MODEL, VAE, T5 = "random_cogvideox.safetensors", "random_cogvideox_vae.safetensors", "random_t5.safetensors"
CONTROL = "random_video_controlnet.safetensors"
# {name of a file: its variant}
VARIANTS = {MODEL: ("none", "1.0"), "random_i2v.safetensors": ("image", "1.0"),
            "random_15.safetensors": ("none", "1.5"), "random_15_i2v.safetensors": ("image", "1.5"),
            "random_inp.safetensors": ("inpaint", "1.0"), "random_control.safetensors": ("control", "1.0")}


@pytest.fixture(scope="module")
def random_models(server):
    """The random models in the server's folders."""
    folders = {kind: server.base / "models" / kind for kind in ("diffusion_models", "vae", "text_encoders")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    for name, variant in VARIANTS.items():
        tiny.save_transformer(folders["diffusion_models"] / name, tiny.params_of(*variant))
    tiny.save_autoencoder(folders["vae"] / VAE)
    tiny.save_t5(folders["text_encoders"] / T5)
    folder = server.base / "models" / "controlnet"
    folder.mkdir(parents=True, exist_ok=True)
    tiny.save_controlnet(folder / CONTROL)


def load(name=MODEL, weight_dtype="default", conditioning="auto"):
    return node("SanaCogLoadCogVideoXModel", model_name=name, weight_dtype=weight_dtype, conditioning=conditioning)


def graph(**changes):
    """Text to video, its frames as pictures. changes: name -> node, instead or in addition; None takes one away."""
    nodes = {
        "model": load(),
        "clip": node("SanaCogLoadCogVideoXTextEncoder", text_encoder_name=T5, tokenizer_name="auto"),
        "vae": node("SanaCogLoadCogVideoXVAE", vae_name=VAE),
        "positive": node("CLIPTextEncode", clip=["clip", 0], text="a red circle moving left"),
        "negative": node("CLIPTextEncode", clip=["clip", 0], text=""),
        "latent": node("SanaCogEmptyCogVideoXLatent", width=SIZE, height=SIZE, length=LENGTH, batch_size=1),
        "sampler": sampler(),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["vae", 0]),
        "save": node("PreviewImage", images=["decode", 0]),
        **changes}
    return {name: one for name, one in nodes.items() if one is not None}


def sampler(model="model", **inputs):
    return node("KSampler", **dict(dict(
        model=[model, 0], positive=["positive", 0], negative=["negative", 0], latent_image=["latent", 0], seed=4, steps=8,
        cfg=3.0, sampler_name="euler", scheduler="simple", denoise=1.0), **inputs))


def draw(server, **changes):
    """The frames of a graph, (T, H, W, 3) as fractions."""
    return np.stack(server.run_prompt(graph(**changes)).images) / 255.0


@pytest.fixture(scope="module")
def plain(server, random_models):
    return draw(server)


@pytest.fixture(scope="module")
def clip_file(server):
    """A bright square that moves over a dark ground, 12 frames of 96 x 96 px at 8 a second, in the input folder."""
    frames = np.full((12, SIZE, SIZE, 3), (20, 30, 90), np.uint8)
    for i, frame in enumerate(frames):
        frame[32:64, 4 * i:4 * i + 32] = (240, 200, 40)
    write_video(server.base / "input" / "square.mp4", frames)
    return "square.mp4"


def write_video(path, frames, rate=8):
    import av  # comes with ComfyUI

    with av.open(str(path), "w") as file:
        stream = file.add_stream("h264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))


def encoded(clip_file):
    """Nodes for video to video."""
    return {"load": node("LoadVideo", file=clip_file), "frames": node("GetVideoComponents", video=["load", 0]),
            "latent": node("VAEEncode", pixels=["frames", 0], vae=["vae", 0])}


def conditioned(kind, name, **inputs):
    """Nodes that put one of the conditioning nodes before the sampler."""
    common = dict(positive=["positive", 0], negative=["negative", 0], vae=["vae", 0], width=SIZE, height=SIZE,
                  length=LENGTH, batch_size=1)
    return {"model": load(name), "latent": None, "given": node(f"SanaCogCogVideoX{kind}", **common, **inputs),
            "sampler": sampler(positive=["given", 0], negative=["given", 1], latent_image=["given", 2])}


def colour(value, size=SIZE):
    return node("EmptyImage", width=size, height=size, batch_size=1, color=value)
