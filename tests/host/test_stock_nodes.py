"""Every stock node that must work with Sana, over HTTP on the embedded tiny model, each with something that can fail."""

import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

SIZE = 256
TINY = "sanacog_tiny_sana.safetensors"


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def graph(**changes):
    """The quickstart, its nodes under plain names. changes: name -> node, instead or in addition."""
    return {
        "model": node("SanaCogLoadSanaModel", model_name=TINY, weight_dtype="default"),
        "clip": node("SanaCogLoadSanaTextEncoder", text_encoder_name="sanacog_tiny_gemma2.safetensors",
                     tokenizer_name="auto"),
        "vae": node("SanaCogLoadDCAE", vae_name="sanacog_tiny_dcae.safetensors"),
        "positive": node("SanaCogSanaTextEncode", clip=["clip", 0], instruction=True,
                         text="a large red circle on a blue background"),
        "negative": node("SanaCogSanaTextEncode", clip=["clip", 0], text="", instruction=False),
        "latent": node("SanaCogEmptySanaLatent", width=SIZE, height=SIZE, batch_size=1),
        "sampler": sampler(),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["vae", 0]),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="test"),
        **changes}


def sampler(model="model", **inputs):
    return node("KSampler", **dict(dict(
        model=[model, 0], positive=["positive", 0], negative=["negative", 0], latent_image=["latent", 0], seed=4, steps=10,
        cfg=4.5, sampler_name="euler", scheduler="simple", denoise=1.0), **inputs))


def draw(server, **changes):
    """The pictures of a graph, (N, H, W, 3) as fractions."""
    return np.stack(server.run_prompt(graph(**changes)).images) / 255.0


def apart(a, b):
    """Mean difference of two pictures, as a fraction of the full range."""
    return float(np.abs(a - b).mean())


@pytest.fixture(scope="module")
def plain(server):
    return draw(server)


@pytest.fixture(scope="module")
def input_picture(server):
    """A green square on yellow in the server's input folder, (H, W, 3)."""
    picture = np.full((SIZE, SIZE, 3), (250, 220, 40), np.uint8)
    picture[64:192, 64:192] = (30, 160, 60)
    Image.fromarray(picture).save(server.base / "input" / "square.png")
    return picture / 255.0


def encoded(name="square.png"):
    return {"load": node("LoadImage", image=name), "latent": node("VAEEncode", pixels=["load", 0], vae=["vae", 0])}


def test_prompt_decides(server, plain):
    other = draw(server, positive=node("SanaCogSanaTextEncode", clip=["clip", 0], instruction=True,
                                       text="a large green square on a white background"))
    assert plain.shape == (1, SIZE, SIZE, 3) and plain.std() > 0.05
    assert apart(plain, other) > 0.1
    # blue behind the red one, white behind the green one
    corner, their_corner = plain[0, :32, :32].mean((0, 1)), other[0, :32, :32].mean((0, 1))
    assert corner.argmax() == 2 and their_corner.min() > corner.min()


# Samplers

@pytest.fixture(scope="module")
def fine(server):
    """Where all that solve the equation arrive."""
    return draw(server, sampler=sampler(steps=40))


@pytest.mark.parametrize("name", ["euler", "ddim", "dpmpp_2m", "heun", "res_multistep", "uni_pc", "deis"])
def test_ksampler_solves_the_equation(server, fine, name):
    """`deis`, of the third order, is not stable yet in ten steps."""
    assert apart(draw(server, sampler=sampler(sampler_name=name, steps=16)), fine) < 0.02


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "euler_ancestral", "lcm"])
def test_ksampler_with_noise_of_its_own(server, plain, name):
    picture = draw(server, sampler=sampler(sampler_name=name))
    assert picture.std() > 0.02
    assert 0 < apart(picture, plain) < 0.2


def advanced(model="model", sampler_node=None, steps=10):
    return {"guider": node("CFGGuider", model=[model, 0], positive=["positive", 0], negative=["negative", 0], cfg=4.5),
            "noise": node("RandomNoise", noise_seed=4),
            "sigmas": node("BasicScheduler", model=[model, 0], scheduler="simple", steps=steps, denoise=1.0),
            "select": sampler_node or node("KSamplerSelect", sampler_name="euler"),
            "sampler": node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["select", 0],
                            sigmas=["sigmas", 0], latent_image=["latent", 0])}


def test_sampler_custom_advanced(server, plain):
    assert apart(draw(server, **advanced()), plain) < 1e-6


def test_flow_dpm_solver(server, fine):
    ours = apart(draw(server, **advanced(sampler_node=node("SanaCogFlowDPMSolver"), steps=20)), fine)
    assert 0 < ours < 0.08


def test_split_sampling_equals_whole(server, plain):
    def part(latent, start, end, first):
        return node("KSamplerAdvanced", model=["model", 0], positive=["positive", 0], negative=["negative", 0],
                    latent_image=[latent, 0], add_noise="enable" if first else "disable", noise_seed=4, steps=10, cfg=4.5,
                    sampler_name="euler", scheduler="simple", start_at_step=start, end_at_step=end,
                    return_with_leftover_noise="enable" if first else "disable")

    picture = draw(server, first=part("latent", 0, 5, True), sampler=part("first", 5, 10, False))
    assert apart(picture, plain) < 0.005


def test_model_sampling_sd3(server, plain):
    def shifted(shift):
        return draw(server, shift=node("ModelSamplingSD3", model=["model", 0], shift=shift), sampler=sampler("shift"))

    assert apart(shifted(3.0), plain) < 1e-6  # the tiny model's own shift
    assert apart(shifted(1.0), plain) > 0.002


def test_batch_of_four(server, plain):
    four = draw(server, latent=node("SanaCogEmptySanaLatent", width=SIZE, height=SIZE, batch_size=4))
    assert four.shape == (4, SIZE, SIZE, 3)
    assert apart(four[0], plain[0]) < 0.005
    assert min(apart(four[i], four[j]) for i in range(4) for j in range(i)) > 0.005


def test_wide_picture(server):
    picture = draw(server, latent=node("SanaCogEmptySanaLatent", width=320, height=192, batch_size=1))
    assert picture.shape == (1, 192, 320, 3) and picture.std() > 0.02


# Text

def test_stock_text_encode_has_no_instruction(server):
    def text(kind, **inputs):
        return draw(server, positive=node(kind, clip=["clip", 0], text="a large red circle on a blue background", **inputs))

    stock = text("CLIPTextEncode")
    assert apart(stock, text("SanaCogSanaTextEncode", instruction=False)) < 1e-6


@pytest.mark.parametrize("kind", ["ConditioningConcat", "ConditioningAverage", "ConditioningCombine"])
def test_conditioning_nodes(server, plain, kind):
    second = node("SanaCogSanaTextEncode", clip=["clip", 0], text="a small green triangle on a white background",
                  instruction=True)
    inputs = {"ConditioningConcat": dict(conditioning_to=["first", 0], conditioning_from=["second", 0]),
              "ConditioningAverage": dict(conditioning_to=["first", 0], conditioning_from=["second", 0],
                                          conditioning_to_strength=0.5),
              "ConditioningCombine": dict(conditioning_1=["first", 0], conditioning_2=["second", 0])}[kind]
    picture = draw(server, first=graph()["positive"], second=second, positive=node(kind, **inputs))
    assert picture.std() > 0.01 and apart(picture, plain) > 0.002


@pytest.mark.parametrize("text", ["", "word " * 10_000, "一只红色的猫 🐈‍⬛ на синем фоне", "(a large:1.2) [red] \\(circle\\) {blue}"])
def test_any_text_draws(server, text):
    positive = node("SanaCogSanaTextEncode", clip=["clip", 0], text=text, instruction=True)
    picture = draw(server, positive=positive, sampler=sampler(steps=2))
    assert picture.shape == (1, SIZE, SIZE, 3)


# The autoencoder

def test_encode_and_decode(server, input_picture):
    again = draw(server, **encoded(), decode=node("VAEDecode", samples=["latent", 0], vae=["vae", 0]))
    assert apart(again[0], input_picture) < 0.06


def test_tiled_decode_and_encode(server, input_picture):
    whole = draw(server, **encoded(), decode=node("VAEDecode", samples=["latent", 0], vae=["vae", 0]))
    tiled = draw(server, load=encoded()["load"],
                 latent=node("VAEEncodeTiled", pixels=["load", 0], vae=["vae", 0], tile_size=192, overlap=32),
                 decode=node("VAEDecodeTiled", samples=["latent", 0], vae=["vae", 0], tile_size=192, overlap=32))
    assert tiled.shape == whole.shape
    assert np.abs(tiled - whole).max() <= 1.01 / 255  # tiles equal the whole to rounding


def test_image_to_image(server, input_picture):
    weak, strong = (draw(server, **encoded(), sampler=sampler(denoise=d))[0] for d in (0.2, 0.9))
    assert apart(weak, input_picture) < 0.5 * apart(strong, input_picture)


def test_inpainting_keeps_the_rest(server, input_picture):
    mask = np.zeros((SIZE, SIZE, 3), np.uint8)
    mask[:, 128:] = 255
    Image.fromarray(mask).save(server.base / "input" / "mask.png")
    nodes = encoded() | {
        "encoded": encoded()["latent"],
        "mask": node("LoadImageMask", image="mask.png", channel="red"),
        "latent": node("SetLatentNoiseMask", samples=["encoded", 0], mask=["mask", 0])}
    before = draw(server, **encoded(), decode=node("VAEDecode", samples=["latent", 0], vae=["vae", 0]))[0]
    after = draw(server, **nodes)[0]
    # A latent pixel is 32 px wide and the decoder looks over its edge: the outer parts of the halves are compared.
    kept, drawn = apart(after[:, :64], before[:, :64]), apart(after[:, 192:], before[:, 192:])
    assert kept < 0.03 and drawn > 3 * kept


# Patches, merging, saving

def save_lora(server, name, layers, width):
    """A random LoRA on the output of each block's self-attention, where the server finds it -> name."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for i in range(layers):
        layer = f"diffusion_model.transformer_blocks.{i}.attn1.to_out.0"
        tensors[f"{layer}.lora_A.weight"] = torch.randn(4, width, generator=generator) * 0.5
        tensors[f"{layer}.lora_B.weight"] = torch.randn(width, 4, generator=generator) * 0.5
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)
    return name


@pytest.fixture(scope="module")
def lora(server):
    return save_lora(server, "random.safetensors", 6, 128)


def with_lora(lora, strength):
    return {"lora": node("LoraLoader", model=["model", 0], clip=["clip", 0], lora_name=lora, strength_model=strength,
                         strength_clip=0.0)}


def test_lora(server, plain, lora):
    changed = draw(server, **with_lora(lora, 1.0), sampler=sampler("lora"))
    assert apart(changed, plain) > 0.005
    assert apart(draw(server, **with_lora(lora, 0.0), sampler=sampler("lora")), plain) < 1e-6
    assert apart(draw(server, sampler=sampler(denoise=0.9999)), plain) < 0.005  # the model itself stayed as it was


def test_merging(server, plain, lora):
    def merged(ratio):
        return draw(server, **with_lora(lora, 1.0), sampler=sampler("merge"),
                    merge=node("ModelMergeSimple", model1=["model", 0], model2=["lora", 0], ratio=ratio))

    other = draw(server, **with_lora(lora, 1.0), sampler=sampler("lora"))
    assert apart(merged(1.0), plain) < 1e-6
    # Sum of the second with itself minus itself, and a weight patched twice: equal up to rounding.
    assert apart(merged(0.0), other) < 0.005
    half = merged(0.5)
    assert apart(half, plain) > 0.002 and apart(half, other) > 0.002


def test_saved_model_loads_again(server, plain):
    server.run_prompt({"model": graph()["model"],
                       "save": node("ModelSave", model=["model", 0], filename_prefix="diffusion_models/saved")})
    name = "saved_00001_.safetensors"
    path = server.base / "output" / "diffusion_models" / name
    assert all(key.startswith("model.diffusion_model.") for key in load_file(path))
    assert apart(draw(server, model=node("SanaCogLoadSanaModel", model_name=name, weight_dtype="default")), plain) < 1e-6


@pytest.mark.parametrize("name, limit", [("fp8_e4m3fn", 0.15), ("bf16", 0.05)])
def test_weight_dtypes(server, name, limit):
    full, picture = (draw(server, model=node("SanaCogLoadSanaModel", model_name=TINY, weight_dtype=kind)) for kind in ("fp32", name))
    assert 0 < apart(picture, full) < limit


def test_easy_cache(server, plain):
    before = len(server.log())
    picture = draw(server, sampler=sampler("easy"),
                   easy=node("EasyCache", model=["model", 0], reuse_threshold=0.2, start_percent=0.1, end_percent=0.95,
                             verbose=True))
    assert "skip" in server.log()[before:].lower()
    assert 0 < apart(picture, plain) < 0.25


@pytest.mark.slow
def test_torch_compile(server, plain):
    picture = draw(server, compile=node("TorchCompileModel", model=["model", 0], backend="inductor"),
                   sampler=sampler("compile"))
    assert apart(picture, plain) < 0.01


# While it runs

def test_previews(server):
    result = server.run_prompt(graph(sampler=sampler(seed=77, steps=6)))
    previews = [data for kind, data in result.events if kind == "binary"]
    assert len(previews) >= 3
    assert all(b"JFIF" in data[:64] or b"\x89PNG" in data[:64] for data in previews)


def test_progress(server):
    result = server.run_prompt(graph(sampler=sampler(seed=78, steps=6)))
    values = [data["value"] for data in result.of_type("progress") if data["max"] == 6]
    assert values == [1, 2, 3, 4, 5, 6]


def test_interrupt(server, plain):
    asked = []

    def stop(kind, data):
        if kind == "progress" and data["value"] >= 3 and not asked:
            asked.append(time.monotonic())
            server.post("/interrupt", {})

    prompt = server.completed(graph(sampler=sampler(seed=79, steps=5000)))
    result = server.wait(server.queue(prompt), 300, stop)
    assert result.end == "execution_interrupted"
    assert time.monotonic() - asked[0] < 30  # 5000 steps take many minutes
    assert not result.files()
    assert apart(draw(server, save=node("PreviewImage", images=["decode", 0])), plain) < 1e-6


def test_free_and_again(server, plain):
    status, _ = server.post("/free", {"unload_models": True, "free_memory": True})
    assert status == 200
    time.sleep(1.5)  # the server frees between prompts
    result = server.run_prompt(graph())
    assert not result.cached
    assert apart(np.stack(result.images) / 255.0, plain) < 1e-6
