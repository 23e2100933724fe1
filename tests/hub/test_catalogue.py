"""Names that people say, and what the catalogue claims of models: sizes by counting, licences as the cards need them."""

import pytest
import torch
import yaml

from sanacog.cogvideo_core.config import CogVideoParams
from sanacog.cogvideo_core.transformer import CogVideoTransformer
from sanacog.hub import catalogue
from sanacog.sana_core import video_checkpoint
from sanacog.sana_core.config import SanaParams
from sanacog.sana_core.transformer import SanaTransformer
from sanacog.sana_core.video_config import SanaVideo2Params, SanaVideoParams


@pytest.mark.parametrize("words, repository", [
    ("sana 1.6b 1024", "Efficient-Large-Model/Sana_1600M_1024px_diffusers"),
    ("sana 1.6b 1024px bf16", "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers"),
    ("Sana 4K", "Efficient-Large-Model/Sana_1600M_4Kpx_BF16_diffusers"),
    ("SANA-1.5 4.8B", "Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers"),
    ("sana sprint 0.6b 1024", "Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers"),
    ("cogvideox 1.5 i2v", "THUDM/CogVideoX1.5-5B-I2V"),
    ("cogvideox 5b i2v", "THUDM/CogVideoX-5b-I2V"),
    ("CogVideoX-2B", "THUDM/CogVideoX-2b"),
    ("cogvideox 1.5 sat i2v", "THUDM/CogVideoX1.5-5B-SAT"),
    ("fun 2b control", "alibaba-pai/CogVideoX-Fun-V1.1-2b-Control"), ("fun 5b pose", "alibaba-pai/CogVideoX-Fun-V1.1-5b-Pose"),
    ("fun 1.0 2b", "alibaba-pai/CogVideoX-Fun-2b-InP"), ("void pass 2", "netflix/void-model"),
    ("cogvideox 5b controlnet hed", "TheDenk/cogvideox-5b-controlnet-hed-v1"),
    ("sana video 2b 480p", "Efficient-Large-Model/SANA-Video_2B_480p_diffusers"),
    ("SANA-Video 2B 720p", "Efficient-Large-Model/SANA-Video_2B_720p_diffusers"),
    ("longsana", "Efficient-Large-Model/SANA-Video_2B_480p_LongLive_diffusers"),
    ("SANA-Video 2.0 5B", "Efficient-Large-Model/SANA-Video_2.0_5B_720p"),
    ("sana video 2.0 4-step", "Efficient-Large-Model/SANA-Video_2.0_5B_720p_4step"),
    ("wan vae", "Comfy-Org/Wan_2.1_ComfyUI_repackaged"), ("ltx vae", "Kijai/LTX2.3_comfy"),
    ("dc-ae 1.1", "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers"),
    ("gemma", "Comfy-Org/PixelDiT"), ("t5", "comfyanonymous/flux_text_encoders"),
])
def test_a_name_means_one(words, repository):
    assert [entry.repository for entry in catalogue.find(words)] == [repository]


def test_a_name_that_several_have():
    assert {entry.name for entry in catalogue.find("cogvideox 5b")} == {"CogVideoX 5B"}  # just that name
    assert len(catalogue.find("sana 1.6b")) > 5 and not any(entry.layout for entry in catalogue.find("sana"))
    assert catalogue.find("sana of mine") == []


def test_every_released_model_of_the_settings_is_there():
    published = [yaml.safe_load(path.read_text())["model"].get("published", {}) for path in
                 (catalogue.CONFIGS / "models").glob("*.yaml")]
    wanted = {"/".join(place.split("/")[:2]) for places in published for place in places.values()}
    assert wanted <= {entry.repository for entry in catalogue.entries()} and len(wanted) > 30
    names = [entry.name for entry in catalogue.entries()]
    assert len(names) == len(set(names))


SIZES = {("sana", "0.6B"): SanaParams(28, 36, 16, 72), ("sana", "1.6B"): SanaParams(20, 70, 20, 112),
         ("sana", "4.8B"): SanaParams(60, 70, 20, 112, qk_norm=True),
         ("sana_video", "2B"): SanaVideoParams(20, 20, 20, 112),
         ("sana_video", "5B"): SanaVideo2Params(32, 2560, 20, tuple(range(3, 32, 4))),
         ("cogvideox", "2B"): CogVideoParams(30, 30), ("cogvideox", "5B"): CogVideoParams(42, 48)}


def test_sizes_are_those_of_the_networks():
    told = yaml.safe_load((catalogue.CONFIGS / "hub.yaml").read_text())["sizes"]
    assert {(family, size) for family in told for size in told[family]} == SIZES.keys()
    for (family, size), params in SIZES.items():
        make = {"sana": SanaTransformer, "sana_video": video_checkpoint.network, "cogvideox": CogVideoTransformer}[family]
        network = make(params, device="meta")
        count = sum(p.numel() for p in network.parameters())
        assert told[family][size][1] == pytest.approx(2 * count / 1e9, abs=0.006), (family, size)
    assert torch.empty(1, dtype=torch.bfloat16).element_size() == 2


def test_licences():
    for entry in catalogue.entries():
        assert entry.licence is None or entry.licence in catalogue.licences()
        if entry.variant:
            small = "2B" in entry.name.split()
            expected = {"sana": "nvidia", "sana_video": "nvidia" if small else "apache",
                        "cogvideox": "apache" if small else "cogvideox"}[entry.family]
            expected = "apache" if "VOID" in entry.title else expected
            assert entry.licence == expected, entry.name
    for licence in catalogue.licences().values():
        assert licence.terms and licence.metadata["license"]
        if licence.metadata["license"] == "other":
            assert licence.metadata["license_name"] and licence.metadata["license_link"].startswith(
                ("https://huggingface.co/", "https://github.com/Lightricks/"))


def test_a_base_by_each_of_its_names():
    repository = "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers"
    for name in (repository, "sana_1600m_1024px_bf16", "Sana 1.6B 1024px BF16"):
        assert catalogue.of_base(name).repository == repository
    assert catalogue.of_base("Efficient-Large-Model/Sana_1600M_1024px_BF16").layout == "native"
    assert catalogue.of_base("mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers") is None  # no model
