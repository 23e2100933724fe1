"""Samplers, sizes, decoding and running with CogVideoX, over HTTP on random tiny models, each with something that can fail."""

import time

import numpy as np
import pytest
from PIL import Image

from ..test_stock_nodes import apart, node
from .http_graphs import (  # noqa: F401  fixtures among them
    LENGTH, SIZE, clip_file, draw, encoded, graph, load, plain, random_models, sampler)

pytestmark = pytest.mark.usefixtures("random_models")


def test_prompt_decides(server, plain):
    other = draw(server, positive=node("CLIPTextEncode", clip=["clip", 0], text="a green square on a white background"))
    assert plain.shape == (LENGTH, SIZE, SIZE, 3) and plain.std() > 0.02
    assert apart(plain, other) > 0.002


# Samplers

# The model's answers are random and its guidance strong, so that samplers differ more than on a trained one.
@pytest.mark.parametrize("name", ["dpmpp_2m", "heun", "res_multistep", "uni_pc", "deis", "ddim", "dpmpp_2m_sde",
                                  "euler_ancestral", "lcm"])
def test_ksampler(server, plain, name):
    video = draw(server, sampler=sampler(sampler_name=name))
    assert video.shape == plain.shape and video.std() > 0.02
    assert apart(video, plain) < 0.3
    if name == "ddim":  # it is euler, by another way
        assert apart(video, plain) < 0.01


@pytest.mark.parametrize("name", ["sgm_uniform", "normal", "beta"])
def test_schedulers(server, plain, name):
    video = draw(server, sampler=sampler(scheduler=name))
    assert video.shape == plain.shape and video.std() > 0.02
    assert 0 < apart(video, plain) < (0.1 if name == "sgm_uniform" else 0.4)


def advanced(sampler_node=None, sigmas=None, guider=None):
    return {"guider": guider or node("CFGGuider", model=["model", 0], positive=["positive", 0], negative=["negative", 0],
                                     cfg=3.0),
            "noise": node("RandomNoise", noise_seed=4),
            "sigmas": sigmas or node("BasicScheduler", model=["model", 0], scheduler="simple", steps=8, denoise=1.0),
            "select": sampler_node or node("KSamplerSelect", sampler_name="euler"),
            "sampler": node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["select", 0],
                            sigmas=["sigmas", 0], latent_image=["latent", 0])}


def trailing(steps=8):
    return node("SanaCogCogVideoXSigmas", model=["model", 0], steps=steps, denoise=1.0)


def test_sampler_custom_advanced(server, plain):
    assert apart(draw(server, **advanced()), plain) < 1e-6


def test_trailing_sigmas(server, plain):
    """8 divides 1000, where ComfyUI's scheduler `simple` is the same."""
    assert apart(draw(server, **advanced(sigmas=trailing())), plain) < 0.002


def test_cogvideox_ddim(server, plain):
    assert apart(draw(server, **advanced(node("SanaCogCogVideoXDDIM"), trailing())), plain) < 0.01


def test_cogvideox_dpm(server, plain):
    videos = [draw(server, **advanced(node("SanaCogCogVideoXDPM"), trailing()) | {
        "noise": node("RandomNoise", noise_seed=seed)}) for seed in (4, 5)]
    assert videos[0].shape == plain.shape and videos[0].std() > 0.02
    assert apart(videos[0], plain) > 0 and apart(*videos) > 0.001


def test_dynamic_guidance(server, plain):
    kinds = [draw(server, **advanced(sigmas=trailing(), guider=node(
        "SanaCogCogVideoXDynamicGuidance", model=["model", 0], positive=["positive", 0], negative=["negative", 0],
        cfg=6.0, mode=mode))) for mode in ("wave", "ramp")]
    assert all(video.shape == plain.shape and video.std() > 0.02 for video in kinds)
    assert apart(*kinds) > 0.001 and all(apart(video, plain) > 0.001 for video in kinds)


# Sizes and batches

def test_batch(server, plain):
    both = draw(server, latent=node("SanaCogEmptyCogVideoXLatent", width=SIZE, height=SIZE, length=LENGTH, batch_size=2))
    assert both.shape == (2 * LENGTH, SIZE, SIZE, 3)
    assert apart(both[:LENGTH], plain) < 0.005 < apart(both[LENGTH:], plain)


@pytest.mark.parametrize("width, height, length", [(96, 160, 5), (176, 96, 1), (112, 80, 17)])
def test_other_sizes(server, width, height, length):
    latent = node("SanaCogEmptyCogVideoXLatent", width=width, height=height, length=length, batch_size=1)
    assert draw(server, latent=latent).shape == (length, height, width, 3)


@pytest.mark.parametrize("length", [9, 13])
def test_version_15_takes_any_length(server, length):
    """Its patches hold two latent frames; 3 and 4 of them come out as 9 and 13 frames."""
    latent = node("SanaCogEmptyCogVideoXLatent", width=SIZE, height=SIZE, length=length, batch_size=1)
    video = draw(server, model=load("random_15.safetensors"), latent=latent)
    assert video.shape == (length, SIZE, SIZE, 3) and video.std() > 0.02


# Decoding and encoding

def test_tiled_nodes(server, clip_file):
    whole = draw(server, **encoded(clip_file), decode=node("VAEDecode", samples=["latent", 0], vae=["vae", 0]))
    tiles = dict(tile_size=64, overlap=16, temporal_size=64, temporal_overlap=8)
    tiled = draw(server, **encoded(clip_file) | {
        "latent": node("VAEEncodeTiled", pixels=["frames", 0], vae=["vae", 0], **tiles)},
        decode=node("VAEDecodeTiled", samples=["latent", 0], vae=["vae", 0], **tiles))
    assert whole.shape == tiled.shape == (LENGTH, SIZE, SIZE, 3)  # 12 frames are cropped to 9
    assert 0 < apart(tiled, whole) < 0.15


def test_cogvideox_decode(server, plain):
    def decoded(tile):
        # The first of its sizes is the tile's, whatever the others are: 0 is for no tiles.
        known = server.object_info["SanaCogCogVideoXDecode"]["input"]["required"]
        sizes = {name: tile if "overlap" not in name else min(tile, 16) for name in known if name not in ("samples", "vae")}
        return draw(server, decode=node("SanaCogCogVideoXDecode", samples=["sampler", 0], vae=["vae", 0], **sizes))

    assert apart(decoded(0), plain) < 1e-6
    assert 0 < apart(decoded(64), plain) < 0.15


def test_video_to_video(server, clip_file):
    source = draw(server, **encoded(clip_file), decode=node("VAEDecode", samples=["latent", 0], vae=["vae", 0]))
    weak, strong = (draw(server, **encoded(clip_file), sampler=sampler(denoise=d)) for d in (0.1, 0.9))
    assert weak.shape == source.shape == (LENGTH, SIZE, SIZE, 3)
    assert apart(weak, source) < 0.7 * apart(strong, source)


def test_noise_mask_keeps_the_rest(server, clip_file):
    mask = np.zeros((SIZE, SIZE, 3), np.uint8)
    mask[:, 48:] = 255
    Image.fromarray(mask).save(server.base / "input" / "half.png")
    nodes = encoded(clip_file)
    nodes |= {"encoded": nodes["latent"], "mask": node("LoadImageMask", image="half.png", channel="red"),
              "latent": node("SetLatentNoiseMask", samples=["encoded", 0], mask=["mask", 0])}
    before = draw(server, **encoded(clip_file), decode=node("VAEDecode", samples=["latent", 0], vae=["vae", 0]))
    after = draw(server, **nodes)
    kept, drawn = apart(after[:, :, :24], before[:, :, :24]), apart(after[:, :, 72:], before[:, :, 72:])
    assert drawn > 3 * kept


# While it runs

def test_previews(server):
    result = server.run_prompt(graph(sampler=sampler(seed=77, steps=6)))
    previews = [data for kind, data in result.events if kind == "binary"]
    assert len(previews) >= 3
    assert all(b"JFIF" in data[:64] or b"\x89PNG" in data[:64] for data in previews)


def test_progress(server):
    result = server.run_prompt(graph(sampler=sampler(seed=78, steps=6)))
    assert [data["value"] for data in result.of_type("progress") if data["max"] == 6] == [1, 2, 3, 4, 5, 6]


def test_interrupt(server, plain):
    asked = []

    def stop(kind, data):
        if kind == "progress" and data["value"] >= 3 and not asked:
            asked.append(time.monotonic())
            server.post("/interrupt", {})

    prompt = server.completed(graph(sampler=sampler(seed=79, steps=900)))
    result = server.wait(server.queue(prompt), 300, stop)
    assert result.end == "execution_interrupted"
    assert time.monotonic() - asked[0] < 30 and not result.files()
    assert apart(draw(server, save=node("SaveImage", images=["decode", 0], filename_prefix="after")), plain) < 1e-6


def test_free_and_again(server, plain):
    status, _ = server.post("/free", {"unload_models": True, "free_memory": True})
    assert status == 200
    for _ in range(4):  # the server frees between prompts, when its worker next looks
        time.sleep(1.5)
        result = server.run_prompt(graph())
        if not result.cached:
            break
    assert not result.cached
    assert apart(np.stack(result.images) / 255.0, plain) < 1e-6
