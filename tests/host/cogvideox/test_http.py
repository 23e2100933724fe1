"""Every stock node that must work with CogVideoX, over HTTP on random tiny models, each with something that can fail.

The models are random, so that nothing here depends on how well the embedded ones are trained.
"""

import json
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ...unit.test_layers import ROOT
from .. import tiny_cogvideox as tiny
from ..test_stock_nodes import apart, node

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


pytestmark = pytest.mark.usefixtures("random_models")


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


# Conditions

def conditioned(kind, name, **inputs):
    """Nodes that put one of the conditioning nodes before the sampler."""
    common = dict(positive=["positive", 0], negative=["negative", 0], vae=["vae", 0], width=SIZE, height=SIZE,
                  length=LENGTH, batch_size=1)
    return {"model": load(name), "latent": None, "given": node(f"SanaCogCogVideoX{kind}", **common, **inputs),
            "sampler": sampler(positive=["given", 0], negative=["given", 1], latent_image=["given", 2])}


def colour(value, size=SIZE):
    return node("EmptyImage", width=size, height=size, batch_size=1, color=value)


@pytest.mark.parametrize("name", ["random_i2v.safetensors", "random_15_i2v.safetensors"])
def test_image_to_video(server, name):
    def animated(**inputs):
        nodes = conditioned("ImageToVideo", name, start_image=["picture", 0], **inputs)
        return draw(server, **nodes, picture=colour(0xFF0000, 128), end=colour(0x00FF00))

    first = animated()
    assert first.shape == (LENGTH, SIZE, SIZE, 3) and first.std() > 0.02
    without = draw(server, model=load(name))
    changed = [animated(end_image=["end", 0]), animated(strength=0.5), animated(noise_augmentation=0.2), without]
    assert all(apart(video, first) > 0.0005 for video in changed)
    assert apart(animated(strength=0.0), without) < 1e-6


def test_fun_inpaint(server, clip_file):
    extra = encoded(clip_file) | {"latent": None, "mask": node("SolidMask", value=1.0, width=SIZE, height=SIZE),
                                  "none": node("SolidMask", value=0.0, width=SIZE // 2, height=SIZE),
                                  "part": node("MaskComposite", destination=["mask", 0], source=["none", 0], x=0, y=0,
                                               operation="and")}

    def inpainted(**inputs):
        return draw(server, **extra | conditioned("FunInpaint", "random_inp.safetensors", **inputs),
                    picture=colour(0xFF0000))

    free = inpainted()
    assert apart(free, draw(server, model=load("random_inp.safetensors"))) < 1e-6
    held = [inpainted(start_image=["picture", 0]), inpainted(end_image=["picture", 0]),
            inpainted(video=["frames", 0], mask=["part", 0])]
    assert all(video.shape == (LENGTH, SIZE, SIZE, 3) for video in held)
    assert all(apart(video, free) > 0.0005 for video in held)
    assert apart(inpainted(video=["frames", 0], mask=["mask", 0]), free) < 1e-6


def test_fun_control(server, clip_file):
    extra = encoded(clip_file) | {"latent": None}

    def controlled(**inputs):
        return draw(server, **extra | conditioned("FunControl", "random_control.safetensors",
                                                  control_video=["frames", 0], **inputs))

    free = draw(server, model=load("random_control.safetensors"))
    assert apart(controlled(), free) > 0.0005
    assert apart(controlled(strength=0.0), free) < 1e-6


def test_controlnet(server, plain, clip_file):
    """The shipped workflow's nodes, with the random models in place of the released ones."""
    extra = encoded(clip_file) | {"latent": graph()["latent"]}

    def controlled(strength=1.0):
        return draw(server, **extra, net=node("SanaCogLoadCogVideoXControlNet", control_net_name=CONTROL, weight_dtype="default"),
                    apply=node("ControlNetApplyAdvanced", positive=["positive", 0], negative=["negative", 0],
                               control_net=["net", 0], image=["frames", 0], strength=strength, start_percent=0.0, end_percent=1.0),
                    sampler=sampler(positive=["apply", 0], negative=["apply", 1]))

    assert apart(controlled(), plain) > 0.0005
    assert apart(controlled(strength=0.0), plain) < 1e-6


def test_the_controlnet_workflow(server):
    """As it is shipped, but for the files, the size and the number of steps."""
    from sanacog.headless.launcher import give_inputs

    give_inputs(server.base)
    workflow = json.loads((ROOT / "workflows" / "api" / "cogvideox_controlnet.json").read_text("utf-8"))
    given = {"SanaCogLoadCogVideoXModel": {"model_name": MODEL}, "SanaCogLoadCogVideoXTextEncoder": {"text_encoder_name": T5},
             "SanaCogLoadCogVideoXVAE": {"vae_name": VAE}, "SanaCogLoadCogVideoXControlNet": {"control_net_name": CONTROL},
             "SanaCogEmptyCogVideoXLatent": {"width": SIZE, "height": SIZE}, "KSampler": {"steps": 2}}
    for one in workflow.values():
        one["inputs"] |= given.get(one["class_type"], {})
    assert server.run_prompt(workflow).images


def test_the_tora_workflow(server):
    """As it is shipped, but for the files, the size, the points and the number of steps; the motion shows."""
    tiny.save_tora(server.base / "models" / "controlnet" / "tora")
    workflow = json.loads((ROOT / "workflows" / "api" / "cogvideox_tora.json").read_text("utf-8"))
    size = {"width": SIZE, "height": SIZE, "length": LENGTH}
    given = {"SanaCogLoadCogVideoXModel": {"model_name": MODEL}, "SanaCogLoadCogVideoXTextEncoder": {"text_encoder_name": T5},
             "SanaCogLoadCogVideoXVAE": {"vae_name": VAE}, "SanaCogEmptyCogVideoXLatent": size,
             "SanaCogCogVideoXTora": size | {"trajectories": "[[20, 20], [70, 60]]"}, "SanaCogCogVideoXSigmas": {"steps": 2},
             "RandomNoise": {"noise_seed": 3}}
    for one in workflow.values():
        one["inputs"] |= given.get(one["class_type"], {})
    [key] = [key for key, one in workflow.items() if one["class_type"] == "SanaCogCogVideoXTora"]
    frames = []
    for strength in (1.0, 0.0):
        workflow[key]["inputs"]["strength"] = strength
        frames.append(np.stack(server.run_prompt(workflow).images) / 255.0)
    assert apart(*frames) > 0.0005


# Patches, merging, saving

@pytest.fixture(scope="module")
def lora(server):
    generator, width, tensors = torch.Generator().manual_seed(0), tiny.PARAMS.width, {}
    for i in range(tiny.PARAMS.num_layers):
        name = f"diffusion_model.transformer_blocks.{i}.attn1.to_out.0"
        tensors[f"{name}.lora_A.weight"] = torch.randn(4, width, generator=generator) * 0.5
        tensors[f"{name}.lora_B.weight"] = torch.randn(width, 4, generator=generator) * 0.5
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "random_cogvideox.safetensors")
    return "random_cogvideox.safetensors"


def with_lora(lora, strength):
    return {"lora": node("LoraLoader", model=["model", 0], clip=["clip", 0], lora_name=lora, strength_model=strength,
                         strength_clip=0.0)}


def test_lora(server, plain, lora):
    changed = draw(server, **with_lora(lora, 1.0), sampler=sampler("lora"))
    assert apart(changed, plain) > 0.001
    assert apart(draw(server, **with_lora(lora, 0.0), sampler=sampler("lora")), plain) < 1e-6
    assert apart(draw(server, save=node("SaveImage", images=["decode", 0], filename_prefix="again")), plain) < 1e-6


def test_merging(server, plain, lora):
    def merged(ratio):
        return draw(server, **with_lora(lora, 1.0), sampler=sampler("merge"),
                    merge=node("ModelMergeSimple", model1=["model", 0], model2=["lora", 0], ratio=ratio))

    other = draw(server, **with_lora(lora, 1.0), sampler=sampler("lora"))
    assert apart(merged(1.0), plain) < 1e-6
    assert apart(merged(0.0), other) < 0.005
    half = merged(0.5)
    assert apart(half, plain) > 0.0005 and apart(half, other) > 0.0005


def test_saved_model_loads_again(server, plain):
    server.run_prompt({"model": load(),
                       "save": node("ModelSave", model=["model", 0], filename_prefix="diffusion_models/saved_cogvideox")})
    name = "saved_cogvideox_00001_.safetensors"
    path = server.base / "output" / "diffusion_models" / name
    # "v_pred" is the host's own mark of a model that predicts v.
    assert all(key.startswith("model.diffusion_model.") for key in load_file(path).keys() - {"v_pred"})
    assert apart(draw(server, model=load(name)), plain) < 1e-6


@pytest.mark.parametrize("name, limit", [("fp8_e4m3fn", 0.3), ("bf16", 0.1)])
def test_weight_dtypes(server, name, limit):
    full = draw(server, model=load(weight_dtype="fp32"))
    assert 0 < apart(draw(server, model=load(weight_dtype=name)), full) < limit


def test_easy_cache(server, plain):
    before = len(server.log())
    video = draw(server, sampler=sampler("easy", steps=20),
                 easy=node("EasyCache", model=["model", 0], reuse_threshold=0.2, start_percent=0.1, end_percent=0.95,
                           verbose=True))
    assert "skip" in server.log()[before:].lower()
    assert video.shape == plain.shape and video.std() > 0.02


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


def test_both_models_in_one_prompt(server):
    """Sana draws, CogVideoX animates: the two live in one memory management."""
    video = draw(server, **conditioned("ImageToVideo", "random_i2v.safetensors", start_image=["picture", 0]), **{
        "sana": node("SanaCogLoadSanaModel", model_name="sanacog_tiny_sana.safetensors", weight_dtype="default"),
        "gemma": node("SanaCogLoadSanaTextEncoder", text_encoder_name="sanacog_tiny_gemma2.safetensors",
                      tokenizer_name="auto"),
        "dcae": node("SanaCogLoadDCAE", vae_name="sanacog_tiny_dcae.safetensors"),
        "words": node("SanaCogSanaTextEncode", clip=["gemma", 0], text="a large red circle", instruction=True),
        "empty": node("SanaCogEmptySanaLatent", width=256, height=256, batch_size=1),
        "drawn": sampler("sana", positive=["words", 0], negative=["words", 0], latent_image=["empty", 0], steps=2),
        "picture": node("VAEDecode", samples=["drawn", 0], vae=["dcae", 0])})
    assert video.shape == (LENGTH, SIZE, SIZE, 3)
