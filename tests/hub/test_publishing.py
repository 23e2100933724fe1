"""What is published: the folder in diffusers' layout, its card, and one commit of it on a stand-in for the Hub."""

import json
import re

import pytest
import safetensors.torch
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from sanacog.hub import catalogue, contents, publishing
from sanacog.hub.remote import HubError
from sanacog.storage.checkpoints import open_checkpoint
from sanacog.training import config_files

from ..host import tiny_sana_video
from .running import LORA, MODEL, ROOT, run, stored


def folder_of(source, tmp_path, **more):
    about = publishing.prepare(source, "me/mine", tmp_path / "out", **more)
    return about, tmp_path / "out", ModelCard.load(tmp_path / "out" / "README.md").data


# --- the folder ---


def with_alphas(path, factor=1.0):
    """The embedded LoRA, whose scale stands in B, with an alpha for every layer that is its rank times a factor."""
    tensors = safetensors.torch.load_file(LORA)
    alphas = {key.replace(".lora_A.weight", ".alpha"): torch.tensor(factor * t.shape[0])
              for key, t in tensors.items() if key.endswith(".lora_A.weight")}
    safetensors.torch.save_file(tensors | alphas, path)
    return path


def test_a_lora_is_what_diffusers_reads(tmp_path):
    """Its alphas, which diffusers refuses, stand in B."""
    source = with_alphas(tmp_path / "alphas.safetensors", 0.5)
    _, out, _ = folder_of(source, tmp_path, licence="apache-2.0")
    before, after = (safetensors.torch.load_file(path) for path in (source, out / "pytorch_lora_weights.safetensors"))
    layers = {key.removesuffix(".lora_A.weight") for key in before if key.endswith(".lora_A.weight")}
    assert {f"{layer}.lora_{part}.weight" for layer in layers for part in "AB"} == set(after) and len(layers) == 60
    for layer in layers:
        A, B, alpha = (before[f"{layer}.{part}"].float() for part in ("lora_A.weight", "lora_B.weight", "alpha"))
        change = after[f"{layer}.lora_B.weight"].flatten(1).float() @ after[f"{layer}.lora_A.weight"].flatten(1).float()
        assert torch.allclose(change, alpha / A.shape[0] * B.flatten(1) @ A.flatten(1), atol=1e-5)
    from diffusers import SanaTransformer2DModel

    config = {key: value for key, value in json.loads(open_checkpoint(MODEL).metadata["config"]).items()
              if key not in ("clamp_fp16", "flow_shift", "_name")}
    network = SanaTransformer2DModel.from_config(config | {"cross_attention_dim": 128})
    network.load_lora_adapter(out, weight_name="pytorch_lora_weights.safetensors", prefix="transformer")
    loaded = {name for name, _ in network.named_parameters() if ".lora_A." in name}
    assert {name.replace(".lora_A.default_0.weight", "") for name in loaded} == {
        layer.removeprefix("transformer.") for layer in layers}


def test_alpha_that_is_not_the_rank(tmp_path):
    publishing.write_lora(LORA, tmp_path / "plain.out")
    publishing.write_lora(with_alphas(tmp_path / "doubled.safetensors", 2.0), tmp_path / "doubled.out")
    plain, twice = (safetensors.torch.load_file(tmp_path / f"{name}.out") for name in ("plain", "doubled"))
    for key, t in plain.items():
        assert torch.equal(twice[key], 2 * t if ".lora_B." in key else t)


@pytest.mark.parametrize("file, name", [("sanacog_tiny_sana", "SanaTransformer2DModel"),
                                        ("sanacog_tiny_cogvideox_i2v", "CogVideoXTransformer3DModel")])
def test_a_model_loads_in_diffusers_in_one_line(tmp_path, file, name):
    source = MODEL.with_name(f"{file}.safetensors")
    about, out, data = folder_of(source, tmp_path, licence="apache-2.0")
    import diffusers

    network, report = getattr(diffusers, name).from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    weights = safetensors.torch.load_file(source)
    key = "proj_out.weight"
    assert torch.equal(network.state_dict()[key], weights[key])
    again = contents.identify(out / "diffusion_pytorch_model.safetensors")  # and here, by the config.json beside it too
    assert again.params == about.contents.params
    assert contents.identify(out).params == about.contents.params
    assert data.library_name == "diffusers" and data.license == "apache-2.0"


def test_a_sana_video_loads_in_diffusers_in_one_line(tmp_path):
    import diffusers

    source = tiny_sana_video.save(tmp_path / "a.safetensors")
    about, out, data = folder_of(source, tmp_path, licence="apache-2.0")
    network, report = diffusers.SanaVideoTransformer3DModel.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    params = about.contents.params
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(1, 16, 2, 4, 6, generator=generator), torch.randn(1, 5, params.caption_channels, generator=generator)
    with torch.no_grad():
        theirs = network(x, encoder_hidden_states=text, timestep=torch.tensor([500.0])).sample
        ours = tiny_sana_video.core(params)(x, torch.tensor([500.0]), text)
    assert (theirs - ours).norm() < 1e-4 * ours.norm()
    assert contents.identify(out).params == params and data.library_name == "diffusers" and data.pipeline_tag == "text-to-video"


def test_a_sana_video_of_the_second_generation(tmp_path):
    """diffusers has none: what is published is our layout, which our loader reads."""
    source = tiny_sana_video.save(tmp_path / "a.safetensors", tiny_sana_video.SECOND)
    about, out, data = folder_of(source, tmp_path, licence="apache-2.0")
    assert contents.identify(out).params == about.contents.params and data.library_name is None
    assert json.loads((out / "config.json").read_text())["_class_name"] == "SanaVideo2"


def test_a_video_model_of_the_newer_kind(tmp_path):
    """1.5 I2V's patches are matrices, and it has an ofs: both are in its config."""
    from diffusers import CogVideoXTransformer3DModel

    theirs = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=32, in_channels=32, out_channels=16, num_layers=2, patch_size=2, patch_size_t=2,
        patch_bias=False, text_embed_dim=48, time_embed_dim=32, ofs_embed_dim=32, use_rotary_positional_embeddings=True)
    theirs.save_pretrained(tmp_path / "theirs")
    about, out, _ = folder_of(tmp_path / "theirs" / "diffusion_pytorch_model.safetensors", tmp_path, licence="apache-2.0")
    network, report = CogVideoXTransformer3DModel.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    ours, before = dict(network.config), dict(theirs.config)
    assert {key: ours[key] for key in before if not key.startswith("_") and ours[key] != before[key]} == {}
    assert about.task == "image-to-video" and about.contents.workflow == "cogvideox_1_5_image_to_video"


def test_a_controlnet(tmp_path):
    """One of diffusers' own goes back into diffusers; the embedded one, whose query-key norm diffusers lacks, is not said to."""
    from diffusers import SanaControlNetModel

    theirs = SanaControlNetModel(num_attention_heads=4, attention_head_dim=32, num_layers=2, num_cross_attention_heads=4,
                                 cross_attention_head_dim=32, cross_attention_dim=128, caption_channels=48)
    theirs.save_pretrained(tmp_path / "theirs")
    about, out, data = folder_of(tmp_path / "theirs" / "diffusion_pytorch_model.safetensors", tmp_path, licence="apache-2.0")
    network, report = SanaControlNetModel.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(torch.equal(t, network.state_dict()[key]) for key, t in theirs.state_dict().items())
    assert {"controlnet", "diffusers"} <= set(data.tags) and "lora" not in data.tags and data.library_name == "diffusers"

    ours = publishing.prepare(ROOT / "models" / "controlnet" / "sanacog_tiny_sana_controlnet.safetensors", "me/mine",
                              tmp_path / "ours", licence="apache-2.0")
    data = ModelCard.load(tmp_path / "ours" / "README.md").data
    assert not ours.contents.of_diffusers and "diffusers" not in data.tags and data.library_name is None
    assert contents.identify(tmp_path / "ours").params == ours.contents.params


def test_a_quantised_model_is_comfyuis_alone(tmp_path):
    from sanacog.commands.convert import convert

    convert(MODEL, tmp_path / "small_int8.safetensors", quantize="int8")
    about, out, data = folder_of(tmp_path / "small_int8.safetensors", tmp_path, licence="apache-2.0", base="some/where")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "small_int8.safetensors"]
    assert data.base_model_relation == "quantized" and data.library_name is None and "diffusers" not in data.tags
    assert "import torch" not in (out / "README.md").read_text()


# --- the card ---



def lora_of_released(path, network_shapes, **metadata):
    """A LoRA, of zeros, of these layers: {name: (out, in)}."""
    tensors = {}
    for layer, (out, into) in network_shapes.items():
        tensors[f"transformer.{layer}.lora_A.weight"] = torch.zeros(4, into)
        tensors[f"transformer.{layer}.lora_B.weight"] = torch.zeros(out, 4)
    safetensors.torch.save_file(tensors, path, metadata)
    return path


SANA_16 = {"transformer_blocks.0.attn1.to_q": (2240, 2240)}
VIDEO_5 = {"transformer_blocks.0.attn1.to_q": (3072, 3072)}
VIDEO_2 = {"transformer_blocks.0.attn1.to_q": (1920, 1920)}


@pytest.mark.parametrize("layers, base, expected", [
    (SANA_16, "Sana 1.6B 1024px BF16", ("Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers", "nscl-v2-custom",
                                        "text-to-image", "sana", "SanaPipeline")),
    (SANA_16, "Sana Sprint 1.6B 1024px", ("Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers", "nscl-v2-custom",
                                          "text-to-image", "sana", "SanaSprintPipeline")),
    (VIDEO_5, "CogVideoX 1.5 5B I2V", ("THUDM/CogVideoX1.5-5B-I2V", "cogvideox-license", "image-to-video", "cogvideox",
                                       "CogVideoXImageToVideoPipeline")),
    (VIDEO_2, "CogVideoX 2B", ("THUDM/CogVideoX-2b", None, "text-to-video", "cogvideox", "CogVideoXPipeline")),
])
def test_a_lora_carries_the_licence_of_the_base_that_its_file_names(tmp_path, layers, base, expected):
    source = lora_of_released(tmp_path / "x.safetensors", layers, ss_base_model=base)
    about, out, data = folder_of(source, tmp_path, prompt="sks")
    repository, licence, task, family, pipeline = expected
    assert (data.base_model, data.pipeline_tag, data.instance_prompt) == (repository, task, "sks")
    assert (data.license, data.license_name) == (("other", licence) if licence else ("apache-2.0", None))
    assert (data.license_link or "").startswith("https://huggingface.co/" if licence else "")
    assert {task, family, "lora", "diffusers", "template:sd-lora"} <= set(data.tags) and data.base_model_relation == "adapter"
    page = (out / "README.md").read_text()
    assert f"import {pipeline}\n" in page and f'from_pretrained("{repository}"' in page
    assert ("ai.google.dev/gemma/terms" in page) == (family == "sana")
    python = re.search(r"```python\n(.*?)```", page, re.S)[1]
    compile(python, "card", "exec")


def test_base_of_another_size_or_family_is_refused(tmp_path):
    source = lora_of_released(tmp_path / "x.safetensors", SANA_16)
    for base in ("THUDM/CogVideoX-2b", "Efficient-Large-Model/Sana_600M_512px_diffusers"):
        with pytest.raises(HubError, match="that cannot be. Give the right one with --base"):
            folder_of(source, tmp_path, base=base)
    _, _, data = folder_of(source, tmp_path, base="sana_1_5_4800m_1024px")  # its blocks are as wide
    assert data.base_model == "Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers"


def test_a_lora_that_fits_two_families_is_of_the_base_that_is_given(tmp_path):
    """Sana 1.6B and SANA-Video 2B have attention of the same widths."""
    source = lora_of_released(tmp_path / "x.safetensors", SANA_16)
    about, _, data = folder_of(source, tmp_path, base="sana_video_2b_480p")
    assert (about.contents.family, about.contents.variant) == ("sana_video", "SANA-Video 2B")
    assert data.base_model == catalogue.of_base("sana_video_2b_480p").repository


def test_nothing_is_published_without_a_licence(tmp_path):
    silent = lora_of_released(tmp_path / "silent.safetensors", SANA_16)
    with pytest.raises(HubError, match="nothing tells which model it was made of, and nothing is published without a licence"):
        folder_of(silent, tmp_path)
    with pytest.raises(HubError, match="the licence of some/where is not known"):
        folder_of(silent, tmp_path, base="some/where")
    with pytest.raises(HubError, match="--licence other: it is one of"):
        folder_of(silent, tmp_path, licence="other")
    source = lora_of_released(tmp_path / "x.safetensors", VIDEO_5, ss_base_model="CogVideoX 5B")
    with pytest.raises(HubError, match="comes under the licence `cogvideox`, and what is made of it too"):
        folder_of(source, tmp_path, licence="mit")
    assert not (tmp_path / "out").exists()
    _, _, data = folder_of(silent, tmp_path, base="some/where", licence="nvidia")
    assert (data.base_model, data.license_name) == ("some/where", "nscl-v2-custom")


def test_what_the_embedded_models_taught_is_under_our_own_licence(tmp_path):
    assert folder_of(LORA, tmp_path)[2].license == "apache-2.0"


def test_what_is_not_published(tmp_path):
    for kind, said in (("vae/sanacog_tiny_dcae", "which nobody trains here"), ("text_encoders/sanacog_tiny_t5", "which nobody")):
        with pytest.raises(HubError, match=said):
            folder_of(ROOT / "models" / f"{kind}.safetensors", tmp_path, licence="mit")
    kohya = {"lora_unet_x.lora_down.weight": torch.zeros(4, 8), "lora_unet_x.lora_up.weight": torch.zeros(8, 4)}
    safetensors.torch.save_file(kohya, tmp_path / "kohya.safetensors")
    with pytest.raises(HubError, match="Convert it first:\n  python run.py convert .*kohya.safetensors"):
        folder_of(tmp_path / "kohya.safetensors", tmp_path, licence="mit")
    with pytest.raises(ValueError, match="of no Sana or CogVideoX transformer: blocks.0 goes from 7 to 7 channels"):
        folder_of(lora_of_released(tmp_path / "other.safetensors", {"blocks.0": (7, 7)}), tmp_path, licence="mit")
    safetensors.torch.save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="x.safetensors: neither Sana's nor CogVideoX'"):
        folder_of(tmp_path / "x.safetensors", tmp_path, licence="mit")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    with pytest.raises(HubError, match="there is something in this folder"):
        folder_of(LORA, tmp_path, licence="mit")


# --- a run ---


def a_run(folder, variant="sana_1600m_1024px_bf16", clips=False):
    """A run's folder as `run.py train` leaves it, with its config.yaml as it writes it."""
    settings = [f"model.variant={variant}", f"data.path={folder.parent}", f"data.cache={folder.parent}", "output.name=mine",
                "validation.prompts=[a red circle, a blue ring]"]
    loaded = config_files.load(["train/sana_lora"], settings, environ={}, complete=False)
    loaded.save(folder)
    lora_of_released(folder / "mine.safetensors", SANA_16, ss_base_model="Sana 1.6B 1024px BF16")
    (folder / "samples").mkdir()
    for step in (0, 250, 1500):
        Image.new("RGB", (8, 8), (step % 256, 0, 0)).save(folder / "samples" / f"step-{step:06}.png")
    if clips:
        for name in ("step-001500-0-0", "step-001500-1-0", "step-000250-0-0"):
            (folder / "samples" / f"{name}.mp4").write_bytes(name.encode())
    return folder


def test_a_run_brings_its_pictures_and_settings(tmp_path):
    about, out, data = folder_of(a_run(tmp_path / "run"), tmp_path)
    assert data.base_model == "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers"
    assert data.widget == [{"text": "a red circle / a blue ring", "output": {"url": "samples/step-001500.png"}}]
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()) == [
        "README.md", "pytorch_lora_weights.safetensors", "samples/step-001500.png"]
    page = (out / "README.md").read_text()
    for row in ("train.steps | 1500", "train.seed | 0", "train.ema | 0.99", "lora.rank | 16"):
        assert f"| {row} |" in page
    assert "<Gallery />" in page
    assert str(tmp_path) not in page and str(tmp_path) in (tmp_path / "run" / "config.yaml").read_text()


def test_a_run_brings_its_clips(tmp_path):
    _, out, data = folder_of(a_run(tmp_path / "run", clips=True), tmp_path)
    assert data.widget == [{"text": "a red circle", "output": {"url": "samples/step-001500-0-0.mp4"}},
                           {"text": "a blue ring", "output": {"url": "samples/step-001500-1-0.mp4"}}]
    assert (out / "samples" / "step-001500-1-0.mp4").read_bytes() == b"step-001500-1-0"


def test_a_run_without_a_result(tmp_path):
    run_folder = a_run(tmp_path / "run")
    (run_folder / "mine.safetensors").unlink()
    with pytest.raises(HubError, match="has no result mine.safetensors yet"):
        folder_of(run_folder, tmp_path)
    (run_folder / "config.yaml").write_text("train: {steps: 3}")
    with pytest.raises(HubError, match="there is no output.name in it"):
        folder_of(run_folder, tmp_path)


# --- on the Hub ---


def test_push_tag_and_push_again(hub, tmp_path):
    status, printed, told = run("push", LORA, "me/outline", "--licence", "apache-2.0", "--tag", "v1", "--private")
    assert status == 0 and "tag v1" in printed
    repository = hub.repositories["me/outline"]
    assert repository.private and repository.tags["v1"] == repository.commits[-1][0]
    assert set(stored(hub, "me/outline")) == {"README.md", "pytorch_lora_weights.safetensors"}
    assert len([call for call in hub.asked if call.startswith("PUT")]) == 1
    assert "POST /api/validate-yaml" in hub.asked
    card = ModelCard(stored(hub, "me/outline")["README.md"].decode())
    assert card.data.license == "apache-2.0" and "python run.py hub pull me/outline" in card.content

    # Another prompt, the same weights: they are not sent again, and the old version stays what it was.
    status, printed, told = run("push", LORA, "me/outline", "--licence", "apache-2.0", "--tag", "v2", "--prompt", "sks")
    assert status == 0, told
    assert len([call for call in hub.asked if call.startswith("PUT")]) == 1
    assert b"sks" in stored(hub, "me/outline")["README.md"] and b"sks" not in stored(hub, "me/outline", "v1")["README.md"]

    commits = len(repository.commits)
    status, printed, told = run("push", LORA, "me/outline", "--licence", "apache-2.0", "--tag", "v1")
    assert status == 1 and "has a tag v1 already" in told and len(repository.commits) == commits


def test_pictures_of_an_earlier_version_go(hub, tmp_path):
    folder = a_run(tmp_path / "run")
    assert run("push", folder, "me/mine")[0] == 0
    (folder / "samples" / "step-001500.png").rename(folder / "samples" / "step-002000.png")
    hub.repositories["me/mine"].commits[-1][1]["notes.txt"] = b"kept"
    assert run("push", folder, "me/mine")[0] == 0
    assert set(stored(hub, "me/mine")) == {"README.md", "pytorch_lora_weights.safetensors", "samples/step-002000.png",
                                           "notes.txt"}


def test_a_race_is_refused(hub):
    hub.put("me/outline", {"README.md": b"mine"})
    hub.before_commit = lambda: hub.put("me/outline", {"README.md": b"of another"})
    status, _, told = run("push", LORA, "me/outline", "--licence", "apache-2.0", "--tag", "v1")
    assert status == 1 and "was changed by someone else while this ran, and nothing was published" in told
    assert stored(hub, "me/outline") == {"README.md": b"of another"} and not hub.repositories["me/outline"].tags


def test_private_is_no_wish(hub):
    hub.put("me/outline", {})
    status, _, told = run("push", LORA, "me/outline", "--licence", "mit", "--private")
    assert status == 1 and "is there already and is public" in told and stored(hub, "me/outline") == {}


@pytest.mark.parametrize("token, said", [("hf_wrong", "does not know this token"), ("", "wants to know who you are")])
def test_who_may_not_write(hub, monkeypatch, token, said):
    monkeypatch.setenv("HF_TOKEN", token)
    status, _, told = run("push", LORA, "me/outline", "--licence", "mit")
    assert status == 1 and said in told and "Traceback" not in told and not hub.repositories


def test_a_dry_run_asks_nobody(hub, tmp_path):
    status, printed, _ = run("push", LORA, "me/outline", "--licence", "mit", "--dry-run", tmp_path / "out")
    assert status == 0 and (tmp_path / "out" / "README.md").is_file() and hub.asked == []
    assert yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])["license"] == "mit"
