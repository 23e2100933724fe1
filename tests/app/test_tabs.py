"""What the page makes of choices: graphs of the shipped workflows, sources at the model's size, errors that a person can mend."""

import io

import numpy as np
import pytest
from PIL import Image


from sanacog.app.graph import encoder_of, filled, shipped
from sanacog.app.offers import LISTS, Offers, preset_of
from sanacog.app.tabs import TABS, Choices, source_of, workflow_of

TINY = {"sana": ["sanacog_tiny_sana.safetensors", "sanacog_tiny_sana_sprint.safetensors", "sanacog_tiny_cogvideox.safetensors",
                 "sanacog_tiny_cogvideox_i2v.safetensors"],
        "gemma": ["sanacog_tiny_gemma2.safetensors", "sanacog_tiny_t5.safetensors"],
        "dcae": ["sanacog_tiny_dcae.safetensors", "sanacog_tiny_cogvideox_vae.safetensors"],
        "controlnet": ["sanacog_tiny_sana_controlnet.safetensors"], "lora": ["sanacog_tiny_sana_outline_lora.safetensors"]}
REAL = {"sana": ["Sana_1600M_1024px_BF16.safetensors", "Sana_Sprint_1.6B_1024px.safetensors", "CogVideoX-5b.safetensors",
                 "flux1-dev.safetensors"],
        "gemma": ["t5xxl_fp16.safetensors", "gemma_2_2b_it_elm_bf16.safetensors"],
        "dcae": ["ae.safetensors", "dc-ae-f32c32-sana-1.1.safetensors", "cogvideox_vae.safetensors"]}


def object_info(*lists):
    files = {kind: sorted(name for names in lists for name in names.get(kind, ())) for kind in LISTS}
    # One folder of ComfyUI for the transformers of both, one for text encoders, one for autoencoders.
    files |= {"cogvideox": files["sana"], "t5": files["gemma"], "video_vae": files["dcae"]}
    return {node: {"input": {"required": {name: ["COMBO", {"options": files[kind]}]}}} for kind, (node, name) in LISTS.items()}


@pytest.fixture
def offers():
    return Offers(object_info(TINY, REAL))


def tab(name):
    return next(tab for tab in TABS if tab.name == name)


def inputs(graph, kind):
    return [node["inputs"] for node in graph.values() if node["class_type"] == kind]


@pytest.mark.parametrize("tab", TABS, ids=lambda tab: tab.name)
def test_each_tab_fills_its_workflow(tab):
    offers = Offers(object_info(TINY))
    model, = tab.offer(offers).models
    preset = preset_of(model)
    choices = Choices(model, "a red circle", "blurry", steps=3, guidance=2.5, seed=77, strength=0.5)
    graph = workflow_of(tab, offers, choices, "given.png")
    assert {key: node["class_type"] for key, node in graph.items()}.items() <= {
        key: node["class_type"] for key, node in shipped(tab.workflow).items()}.items()
    sampler, = inputs(graph, "SanaCogSanaSprintSampler" if tab.sprint else "KSampler")
    assert (sampler["seed"], sampler["steps"], sampler["guidance" if tab.sprint else "cfg"]) == (77, 3, 2.5)
    assert sampler["denoise"] == (0.5 if tab.strength else 1)
    assert encoder_of(graph, "positive")["inputs"]["text"] == "a red circle"
    assert tab.sprint or encoder_of(graph, "negative")["inputs"]["text"] == "blurry"
    named = [value for node in graph.values() for value in node["inputs"].values() if str(value).endswith(".safetensors")]
    assert named and all("sanacog_tiny" in name for name in named)
    for size in inputs(graph, "SanaCogEmptySanaLatent") + inputs(graph, "SanaCogEmptyCogVideoXLatent"):
        assert (size["width"], size["height"]) == (preset.width, preset.height)
    given = inputs(graph, "LoadVideo" if tab.source == "video" else "LoadImage")
    assert [value for node in given for value in node.values()] == ["given.png"] * bool(tab.source)
    # Every link leads to a node that is there.
    assert all(value[0] in graph for node in graph.values() for value in node["inputs"].values() if isinstance(value, list))


def test_real_models_get_their_sizes_and_companions(offers):
    graph = workflow_of(tab("sana_text"), offers, Choices("Sana_1600M_1024px_BF16.safetensors", "a cat", aspect="16:9"))
    assert inputs(graph, "SanaCogSanaResolution") == [{"base": "1024", "aspect_ratio": "16:9", "wanted_width": 0, "wanted_height": 0}]
    assert inputs(graph, "SanaCogLoadSanaTextEncoder")[0]["text_encoder_name"] == "gemma_2_2b_it_elm_bf16.safetensors"
    assert inputs(graph, "SanaCogLoadDCAE")[0]["vae_name"] == "dc-ae-f32c32-sana-1.1.safetensors"
    graph = workflow_of(tab("video_text"), offers, Choices("CogVideoX-5b.safetensors", "a cat"))
    latent, = inputs(graph, "SanaCogEmptyCogVideoXLatent")
    assert (latent["width"], latent["height"], latent["length"]) == (720, 480, 49)
    assert inputs(graph, "SanaCogLoadCogVideoXVAE")[0]["vae_name"] == "cogvideox_vae.safetensors"


def test_offers_know_families_and_put_real_models_first(offers):
    assert tab("sana_text").offer(offers).models == ("Sana_1600M_1024px_BF16.safetensors", "sanacog_tiny_sana.safetensors")
    assert tab("sana_sprint").offer(offers).models == ("Sana_Sprint_1.6B_1024px.safetensors", "sanacog_tiny_sana_sprint.safetensors")
    assert tab("video_text").offer(offers).models == ("CogVideoX-5b.safetensors", "sanacog_tiny_cogvideox.safetensors")
    # No ControlNet of the released Sana is there.
    assert tab("sana_sketch").offer(offers).models == ("sanacog_tiny_sana.safetensors",)


def test_what_is_not_there_says_why():
    offers = Offers(object_info(REAL))
    offer = tab("sana_sketch").offer(offers)
    assert not offer.models and "Sana_1600M_1024px_BF16.safetensors is there, but no Sana ControlNet" in offer.missing
    assert "there is no CogVideoX I2V model" in tab("video_image").offer(offers).missing
    with pytest.raises(ValueError, match="does not have this pack"):
        Offers({})


def test_a_lora_stands_between_the_model_and_all_that_use_it(offers):
    choices = Choices("sanacog_tiny_sana.safetensors", "a red circle", lora="x.safetensors", lora_strength=0.5)
    graph = workflow_of(tab("sana_text"), offers, choices)
    (key, lora), = [(key, node) for key, node in graph.items() if node["class_type"] == "SanaCogLoadLoRA"]
    assert (lora["inputs"]["lora_name"], lora["inputs"]["strength_model"]) == ("x.safetensors", 0.5)
    assert graph[lora["inputs"]["model"][0]]["class_type"] == "SanaCogLoadSanaModel"
    assert inputs(graph, "KSampler")[0]["model"] == [key, 0]


@pytest.mark.parametrize("change, said", [
    (dict(prompt="  "), "Say what to draw"), (dict(prompt="x" * 9000), "9000 characters"), (dict(steps=0), "0 steps"),
    (dict(guidance=99.0), "Guidance 99"), (dict(seed=-1), "Seed -1"), (dict(model="other"), "other is not offered"),
    (dict(model=""), "No model is not offered")])
def test_bad_choices_are_said(offers, change, said):
    choices = Choices(**{"model": "sanacog_tiny_sana.safetensors", "prompt": "a red circle", **change})
    with pytest.raises(ValueError, match=said):
        workflow_of(tab("sana_text"), offers, choices)


def test_filling_in_what_no_node_has_is_an_error():
    with pytest.raises(KeyError, match="no KSampler of this workflow has the input nothing"):
        filled(shipped("sana_quickstart"), {("KSampler", "nothing"): 1}, "x")


# --- sources ---


def opened(data):
    return np.array(Image.open(io.BytesIO(data)))


def picture(width, height, colour="red", mode="RGB"):
    return Image.new(mode, (width, height), colour)


def test_a_picture_is_cut_to_the_models_size():
    preset = preset_of("sanacog_tiny_sana.safetensors")
    wide = picture(600, 300)
    wide.paste("blue", (0, 0, 150, 300))  # outside the middle square
    data, ending = source_of(tab("sana_image"), wide, preset)
    assert ending == ".png" and opened(data).shape == (256, 256, 3) and (opened(data)[:, 4:] == (255, 0, 0)).all()


def test_paint_becomes_what_is_transparent():
    preset = preset_of("sanacog_tiny_sana.safetensors")
    layer = picture(512, 512, (0, 0, 0, 0), "RGBA")
    layer.paste((16, 185, 129, 255), (0, 0, 256, 512))
    given = {"background": picture(512, 512), "layers": [layer], "composite": picture(512, 512)}
    found = opened(source_of(tab("sana_inpaint"), given, preset)[0])
    assert found.shape == (256, 256, 4)
    assert (found[:, :120, 3] == 0).all() and (found[:, 136:, 3] == 255).all() and (found[..., :3] == (255, 0, 0)).all()


def test_a_sketch_lies_on_white():
    drawn = picture(300, 300, (0, 0, 0, 0), "RGBA")
    drawn.paste((0, 0, 0, 255), (100, 100, 200, 200))
    found = opened(source_of(tab("sana_sketch"), {"background": None, "layers": [drawn], "composite": drawn}, None)[0])
    assert (found[0, 0] == 255).all() and (found[512, 512] == 0).all()


@pytest.mark.parametrize("name, given, said", [
    ("sana_image", None, "Give a picture"), ("sana_inpaint", None, "paint over"), ("sana_sketch", None, "Draw a shape"),
    ("video_video", None, "Give a video"),
    ("sana_inpaint", {"background": picture(9, 9), "layers": [], "composite": picture(9, 9)}, "nothing is marked"),
    ("sana_inpaint", {"background": None, "layers": [], "composite": picture(9, 9)}, "paint over")])
def test_a_missing_source_is_said(name, given, said):
    with pytest.raises(ValueError, match=said):
        source_of(tab(name), given, None)


def test_presets_are_found_by_the_longest_name():
    assert preset_of("sub/Sana_1600M_1024px_BF16.safetensors").name == "sana_1600m_1024px_bf16"
    assert preset_of("Sana_Sprint_0.6B_1024px_diffusers").distilled
    assert preset_of("sanacog_tiny_cogvideox_i2v.safetensors").image and not preset_of("sanacog_tiny_cogvideox.safetensors").image
    assert preset_of("flux1-dev.safetensors") is None
