"""What is offered: the models that have all that they need, with the settings of their variant."""

import pytest

from sanacog.app.offers import CONFIGS, EMBEDDED, LISTS, Offers, options, preset_of, presets

FILES = {
    "sana": ["Sana_600M_512px.safetensors", "sanacog_tiny_sana.safetensors", "sanacog_tiny_sana_sprint.safetensors"],
    "cogvideox": ["CogVideoX-5b/transformer", "CogVideoX_1_5_5b_I2V_bf16.safetensors", "sanacog_tiny_cogvideox.safetensors"],
    "sana_video": ["SANA-Video_2B_480p_diffusers/transformer", "SANA-Video_2B_720p.pth", "SANA_Video_2.0_5B_720p_4step.pth",
                   "sanacog_tiny_sana_video.safetensors"],
    "wan_vae": ["ae.safetensors", "wan_2.1_vae.safetensors"],
    "gemma": ["t5xxl_fp16.safetensors", "sanacog_tiny_t5.safetensors", "sanacog_tiny_gemma2.safetensors", "gemma_2_2b_it.safetensors"],
    "dcae": ["ae.safetensors", "sanacog_tiny_cogvideox_vae.safetensors", "sanacog_tiny_dcae.safetensors", "dc-ae-f32c32.safetensors"],
    "t5": ["gemma_2_2b_it.safetensors", "t5xxl_fp16.safetensors"],
    "video_vae": ["sanacog_tiny_cogvideox_vae.safetensors", "cogvideox_vae.safetensors"],
    "lora": ["sanacog_tiny_sana_outline_lora.safetensors", "mine.safetensors"],
}


def offers(**files):
    files = {**FILES, **files}

    def ask(path):
        node = path.rpartition("/")[2]
        inputs = {name: [files.get(kind, [])] for kind, (of, name, *_) in LISTS.items() if of == node}
        return {node: {"input": {"required": inputs}}}

    return Offers(ask)


@pytest.mark.parametrize("model, variant", [
    ("Sana_600M_512px.safetensors", "sana_600m_512px"), ("Sana_1600M_1024px_BF16.safetensors", "sana_1600m_1024px_bf16"),
    ("Sana_1600M_1024px_BF16_diffusers/transformer", "sana_1600m_1024px_bf16"), ("SANA1.5_4.8B_1024px.pth", "sana_1_5_4800m_1024px"),
    ("Sana_Sprint_1.6B_1024px.safetensors", "sana_sprint_1600m"), ("sub\\Sana_1600M_4Kpx_BF16_fp8.safetensors", "sana_1600m_4k"),
    ("CogVideoX-5b/transformer", "cogvideox_5b"), ("CogVideoX-5b-I2V", "cogvideox_5b_i2v"),
    ("CogVideoX_1_5_5b_T2V_bf16.safetensors", "cogvideox_1_5_5b"), ("CogVideoX_1_5_5b_I2V_bf16.safetensors", "cogvideox_1_5_5b_i2v"),
    ("sanacog_tiny_sana.safetensors", "tiny_sana"), ("sanacog_tiny_sana_sprint.safetensors", "tiny_sana_sprint"),
    ("SANA-Video_2B_480p_diffusers/transformer", "sana_video_2b_480p"), ("SANA_Video_2B_480p.pth", "sana_video_2b_480p"),
    ("SANA-Video_2B_480p_LongLive_diffusers/transformer", "longsana_2b_480p"), ("SANA-Video_2B_720p.pth", "sana_video_2b_720p"),
    ("SANA_Video_2.0_5B_720p.pth", "sana_video_2_0_5b_720p"), ("SANA_Video_2.0_5B_720p_4step.pth", "sana_video_2_0_5b_720p_4step"),
    ("sanacog_tiny_sana_video.safetensors", "tiny_sana_video"),
    ("sanacog_tiny_cogvideox_i2v.safetensors", "tiny_cogvideox_i2v"), ("mine.safetensors", None)])
def test_a_name_tells_the_variant(model, variant):
    found = preset_of(model)
    assert (found and found.variant) == variant


def test_every_variant_has_a_name():
    assert {preset.variant for preset in presets().values()} == {path.stem for path in CONFIGS.glob("*.yaml")}


def test_each_model_comes_with_its_own_files():
    large, tiny = offers().models("sana")[0]
    assert large.files == {"model_name": "Sana_600M_512px.safetensors", "text_encoder_name": "gemma_2_2b_it.safetensors",
                           "vae_name": "dc-ae-f32c32.safetensors"}
    assert set(tiny.files.values()) == {"sanacog_tiny_sana.safetensors", "sanacog_tiny_gemma2.safetensors",
                                        "sanacog_tiny_dcae.safetensors"}
    assert (large.preset.width, tiny.preset.width) == (512, 256) and (large.embedded, tiny.embedded) == (False, True)
    assert (large.loras, tiny.loras) == (("mine.safetensors",), ("sanacog_tiny_sana_outline_lora.safetensors",))


def test_models_are_told_apart_by_what_they_take():
    names = [[model.name for model in offers().models("cogvideox", conditioning=kind)[0]] for kind in ("none", "image")]
    assert names == [["CogVideoX-5b/transformer"], ["CogVideoX_1_5_5b_I2V_bf16.safetensors"]]
    assert [model.name for model in offers().models("sana", sprint=True)[0]] == ["sanacog_tiny_sana_sprint.safetensors"]
    unknown, = offers(sana=["my_sprint.pth"]).models("sana", sprint=True)[0]
    assert unknown.preset.variant == "sana_sprint_1600m"


def test_sana_video_with_the_autoencoder_of_each():
    large, tiny = offers().models("sana_video")[0]
    assert large.files == {"model_name": "SANA-Video_2B_480p_diffusers/transformer", "text_encoder_name": "gemma_2_2b_it.safetensors",
                           "vae_name": "wan_2.1_vae.safetensors"}
    assert set(tiny.files.values()) == {"sanacog_tiny_sana_video.safetensors", "sanacog_tiny_gemma2.safetensors",
                                        "sanacog_tiny_cogvideox_vae.safetensors"}
    assert [(model.preset.frame_step, model.preset.max_frames) for model in (large, tiny)] == [(4, 81), (8, 17)]
    assert tiny.loras == () and large.loras == ("mine.safetensors",)
    assert offers().models("sana_video", released=False)[0] == [tiny]
    assert offers(sana_video=[]).models("sana_video") == ([], "There is no SANA-Video model; docs/models.md says where to get it.")
    assert "needs a Wan 2.1 VAE" in offers(wan_vae=[], sana_video=FILES["sana_video"][:1]).models("sana_video")[1]


def test_why_nothing_is_offered():
    found, why = offers(dcae=["ae.safetensors"]).models("sana")
    assert not found and "needs a DC-AE" in why and EMBEDDED in why
    assert offers(sana=[]).models("sana", sprint=True) == ([], "There is no Sana Sprint model; docs/models.md says where to get it.")


def test_choices_in_both_forms_and_a_host_without_the_pack():
    assert options({"N": {"input": {"required": {"a": [["x", "y"], {}]}}}}, "N", "a") == ["x", "y"]
    assert options({"N": {"input": {"optional": {"a": ["COMBO", {"options": ["x", 1]}]}}}}, "N", "a") == ["x"]
    with pytest.raises(ValueError, match="does not have the pack"):
        options({}, "N", "a")
