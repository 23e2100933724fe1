"""What a file is by its tensors: every embedded model, LoRAs of every size, and what is none of them."""

import dataclasses
import json

import pytest
import safetensors.torch
import torch

from sanacog.hub import catalogue, contents
from sanacog.sana_core.video_checkpoint import from_canonical

from ..host import tiny_sana_video

from .running import LORA, MODEL, ROOT

EXPECTED = {"sanacog_tiny_sana": "sana_text_to_image", "sanacog_tiny_sana_sprint": "sana_sprint",
            "sanacog_tiny_cogvideox": "cogvideox_5b_text_to_video", "sanacog_tiny_cogvideox_i2v": "cogvideox_image_to_video",
            "sanacog_tiny_sana_controlnet": "sana_controlnet", "sanacog_tiny_sana_outline_lora": "sana_lora",
            "sanacog_tiny_gemma2": "sana_text_to_image", "sanacog_tiny_dcae": "sana_text_to_image",
            "sanacog_tiny_t5": "cogvideox_5b_text_to_video", "sanacog_tiny_cogvideox_vae": "cogvideox_5b_text_to_video",
            "sanacog_tiny_sana_video": "sana_video_text_to_video"}


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*/*.safetensors")), ids=lambda path: path.stem)
def test_an_embedded_model(path):
    found = contents.identify(path)
    assert found.kind == path.parent.name
    assert found.family == ("cogvideox" if "cogvideox" in path.stem or "t5" in path.stem
                            else "sana_video" if "sana_video" in path.stem else "sana")
    assert found.workflow == EXPECTED[path.stem]


def test_a_controlnet_of_cogvideox(tmp_path):
    from ..host.tiny_cogvideox import save_controlnet

    found = contents.identify(save_controlnet(tmp_path / "canny.safetensors"))
    assert (found.kind, found.family, found.loader, found.workflow) == (
        "controlnet", "cogvideox", "Load CogVideoX ControlNet", "cogvideox_controlnet")
    assert "1 blocks" in found.variant and not found.of_diffusers and (ROOT / "workflows" / f"{found.workflow}.json").exists()


@pytest.mark.parametrize("kind, name, workflow, of_diffusers", [
    ("480p", "SANA-Video_2B_480p", "sana_video_2b_text_to_video", True), ("480p", "LongSANA_2B_480p_ode", "sana_video_long", False),
    ("720p", "x", "sana_video_2b_text_to_video", True), ("2.0", "SANA-Video_2.0_5B_720p_4step", "sana_video_2", False),
    ("embedded", "x", "sana_video_text_to_video", True)])
@pytest.mark.parametrize("layout", ["diffusers", "nvlabs"])
def test_a_sana_video(tmp_path, kind, name, workflow, of_diffusers, layout):
    params = tiny_sana_video.KINDS[kind]
    network = tiny_sana_video.core(params)
    tensors = {key: t.contiguous() for key, t in from_canonical(network.state_dict(), layout).items()}
    told = dataclasses.asdict(params)
    told = {key: value for key, value in told.items() if key not in ("causal", "distilled")}  # which the name tells
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", {"config": json.dumps(told)})
    found = contents.identify(tmp_path / "a.safetensors", name)
    assert (found.kind, found.family, found.loader, found.workflow) == (
        "diffusion_models", "sana_video", "Load SANA-Video Model", workflow)
    assert found.layout == layout and found.of_diffusers == (of_diffusers and layout == "diffusers")
    assert (ROOT / "workflows" / f"{workflow}.json").exists()


@pytest.mark.parametrize("keys, variant, loader, workflow", [
    (("conv2.weight", "decoder.middle.0.residual.0.gamma"), "Wan 2.1 VAE", "Load VAE", "sana_video_2b_text_to_video"),
    (("vae.per_channel_statistics.mean-of-means", "vae.decoder.conv_in.conv.weight"), "LTX-2 VAE", "Load VAE", "sana_video_2"),
    (("post_quant_conv.weight", "decoder.mid_block.resnets.0.norm1.gamma"), "Wan 2.1 VAE", "hub pull Wan 2.1 VAE", ""),
    (("latents_mean", "latents_std", "decoder.conv_in.conv.weight"), "LTX-2 VAE", "hub pull LTX-2 VAE", "")])
def test_an_autoencoder_of_sana_videos(tmp_path, keys, variant, loader, workflow):
    safetensors.torch.save_file({key: torch.zeros(16, 16, 1, 1, 1) for key in keys}, tmp_path / "vae.safetensors")
    found = contents.identify(tmp_path / "vae.safetensors")
    assert (found.kind, found.family, found.variant) == ("vae", "sana_video", variant) and loader in found.loader
    assert workflow in found.workflow and catalogue.find(variant)


def test_workflows_are_shipped():
    shipped = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert set(EXPECTED.values()) <= shipped

    class Params:
        guidance_embeds, sample_size, patch_size_t, conditioning = False, 128, None, "none"

    names = set()
    for family in ("sana", "cogvideox"):
        for conditioning in ("none", "image", "inpaint", "control"):
            for patch_size_t in (None, 2):
                Params.conditioning, Params.patch_size_t = conditioning, patch_size_t
                names.add(contents.Contents("diffusion_models", family, "", "diffusers", None, Params).workflow)
    assert names <= shipped and len(names) == 7


def lora(path, **layers):
    tensors = {}
    for layer, (out, into) in layers.items():
        tensors[f"transformer.{layer}.lora_A.weight"] = torch.zeros(2, into)
        tensors[f"transformer.{layer}.lora_B.weight"] = torch.zeros(out, 2)
    safetensors.torch.save_file(tensors, path)
    return path


@pytest.mark.parametrize("layers, family, variant", [
    ({"transformer_blocks.27.attn2.to_k": (1152, 1152)}, "sana", "Sana 0.6B"),
    ({"transformer_blocks.19.ff.conv_point": (2240, 5600)}, "sana", "Sana 1.6B"),
    ({"transformer_blocks.20.attn1.to_q": (2240, 2240)}, "sana", "Sana 4.8B"),
    ({"transformer_blocks.19.ff.conv_inverted": (13440, 2240)}, "sana_video", "SANA-Video 2B"),
    ({"transformer_blocks.31.attn1.output_gate": (2560, 2560)}, "sana_video", "SANA-Video 2.0 5B"),
    ({"transformer_blocks.0.attn1.to_q": (1920, 1920)}, "cogvideox", "CogVideoX 2B"),
    ({"transformer_blocks.41.ff.net.0.proj": (12288, 3072)}, "cogvideox", "CogVideoX 5B"),
])
def test_a_lora_by_its_widths(tmp_path, layers, family, variant):
    found = contents.identify(lora(tmp_path / "x.safetensors", **layers))
    assert (found.kind, found.family, found.variant, found.layout) == ("loras", family, variant, "diffusers")


def test_a_lora_by_its_widths_and_what_its_file_says(tmp_path):
    """Attention of Sana 1.6B and of SANA-Video 2B is of the same widths."""
    path = lora(tmp_path / "x.safetensors", **{"transformer_blocks.3.attn1.to_q": (2240, 2240)})
    assert contents.identify(path).variant == "Sana 1.6B"
    for architecture, variant in (("sana_video/lora", "SANA-Video 2B"), ("sana/lora", "Sana 1.6B"), ("other/lora", "Sana 1.6B")):
        safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"modelspec.architecture": architecture})
        assert contents.identify(path).variant == variant


def test_a_lora_of_another_model(tmp_path):
    with pytest.raises(ValueError, match="of no Sana or CogVideoX transformer: transformer_blocks.0.attn.to_q goes from 3072"):
        contents.identify(lora(tmp_path / "flux.safetensors", **{"transformer_blocks.0.attn.to_q": (3072, 3072)}))
    tensors = safetensors.torch.load_file(LORA)
    del tensors["transformer.transformer_blocks.0.attn1.to_k.lora_B.weight"]
    safetensors.torch.save_file(tensors, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="only one of the two matrices"):
        contents.identify(tmp_path / "cut.safetensors")


def test_not_whole(tmp_path):
    gemma = ROOT / "models" / "text_encoders" / "sanacog_tiny_gemma2.safetensors"
    for path, lost in ((MODEL, "proj_out.bias"), (gemma, "embed_tokens")):
        tensors = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata()
        kept = {key: t for key, t in tensors.items() if lost not in key}
        assert len(kept) < len(tensors)
        safetensors.torch.save_file(kept, tmp_path / path.name, metadata)
        with pytest.raises(ValueError, match="not a whole|without"):
            contents.identify(tmp_path / path.name)
