"""The presets of released models say what the code, docs/models.md and the shipped workflows say."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from sanacog.cogvideo_core.config import CogVideoParams
from sanacog.cogvideo_core.config import identify as identify_cogvideo
from sanacog.cogvideo_core.transformer import CogVideoTransformer
from sanacog.sana_core.config import SanaParams
from sanacog.sana_core.config import identify as identify_sana
from sanacog.sana_core.video_checkpoint import from_canonical, network
from sanacog.sana_core.video_config import SanaVideo2Params, SanaVideoParams
from sanacog.sana_core.video_config import identify as identify_sana_video
from sanacog.training.config import get
from sanacog.training.config_files import PRESETS, load, variants
from sanacog.training.config_yaml import ROOT, read_file

from ..unit.sana_releases import RELEASES
from ..unit.test_cogvideo_config import VARIANTS as COGVIDEO

# Title: what the network is made of.
ARCHITECTURES = {title: params for title, (params, *_) in COGVIDEO.items()} | {
    "CogVideoX 2B img2vid": COGVIDEO["CogVideoX 2B"][0] | dict(in_channels=32, conditioning="repeated_image")}
PAGE = (ROOT / "docs" / "models.md").read_text("utf-8")
WORKFLOWS = sorted((ROOT / "workflows" / "api").glob("*.json"))


def preset(name):
    return read_file(PRESETS / f"{name}.yaml").values


ALL = {name: preset(name) for name in variants()}
SANA_VIDEO = [name for name, values in ALL.items() if values["model"]["family"] == "sana_video" and "published" in values["model"]]


@pytest.mark.parametrize("name", ALL)
def test_a_preset_is_whole(name):
    values = ALL[name]
    assert values["model"]["variant"] == name
    sampling = values["sampling"]
    sprint = values["model"].get("distilled", False)
    wanted = {"width", "height", "steps", "guidance", "sampler"} | ({"shift"} if not sprint else set())
    if values["model"]["family"] != "sana":
        wanted |= {"frames", "fps"}
        score = {"motion_score": values["data"].get("motion_score")} if values["model"]["family"] == "sana_video" else {}
        assert values["data"] == {"resolution": [sampling["height"], sampling["width"]], "frames": [sampling["frames"]],
                                  "fps": sampling["fps"]} | score and None not in score.values()
    if values["model"]["family"] == "cogvideox":
        assert sampling["sampler"] in ("ddim", "dpm")
        assert (sampling["frames"] - 1) % values["model"]["frame_step"] == 0 and sampling["frames"] <= values["model"]["max_frames"]
    elif values["model"]["family"] == "sana_video":
        assert sampling["sampler"] in (("longsana", "lcm") if sprint else ("flow_dpm_solver", "euler"))
        assert values.get("objective", {}).get("shift") == (None if sprint or "published" not in values["model"] else 3.0)
    else:
        assert values["data"]["resolution"] in (sampling["width"], [sampling["height"], sampling["width"]])
        assert sampling["sampler"] == "scm" if sprint else sampling["sampler"] in ("flow_dpm_solver", "euler")
    assert set(sampling) - {"dynamic_guidance"} == wanted
    loaded = load([f"models/{name}"], ["train.kind=sprint"] if "sprint" in name and sprint else [], {}, complete=False)
    for section in ("model", "sampling", "data"):
        for key, value in values[section].items():
            if not isinstance(value, dict) and "${" not in str(value):
                assert get(loaded.config, f"{section}.{key}") == value


def test_every_release_of_sana_has_a_preset_that_is_what_the_code_finds():
    found = {values["model"]["published"]["diffusers"]: values for values in ALL.values()
             if values["model"]["family"] == "sana" and "published" in values["model"]}
    assert set(found) == {f"Efficient-Large-Model/{release.repository}_diffusers" for release in RELEASES}
    for release in RELEASES:
        values = found[f"Efficient-Large-Model/{release.repository}_diffusers"]
        a = release.architecture
        assert values["model"]["title"] == release.variant
        assert values["sampling"]["width"] == values["sampling"]["height"] == 32 * release.sample_size
        assert values["model"].get("distilled", False) == a.sprint
        assert values["sampling"].get("shift", 3.0) == release.flow_shift
        assert (release.file or release.repository) in values["model"]["published"]["native"]


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("cogvideox")])
def test_presets_of_cogvideox_are_what_the_code_has(name):
    values = ALL[name]
    params = CogVideoParams(**ARCHITECTURES[values["model"]["title"]])
    assert values["sampling"]["shift"] == params.snr_shift_scale
    assert values["model"].get("conditioning", "none") == params.conditioning
    if "fun" not in name and "void" not in name:
        assert values["model"]["frame_step"] == 8 * (params.patch_size_t or 1)


def test_every_released_cogvideox_has_a_preset():
    assert set(ARCHITECTURES) == {values["model"]["title"] for name, values in ALL.items() if name.startswith("cogvideox")}


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("cogvideox")])
def test_the_loader_takes_each_cogvideox_for_what_its_preset_says(name):
    """By its tensors and the name that it is published under: Pose and img2vid have no tensor of their own."""
    model = ALL[name]["model"]
    with torch.device("meta"):
        state = CogVideoTransformer(CogVideoParams(**ARCHITECTURES[model["title"]])).state_dict()
    found = identify_cogvideo({key: tuple(t.shape) for key, t in state.items()}, None, model["published"]["diffusers"])
    assert (found.variant, found.params.conditioning) == (model["title"], model.get("conditioning", "none"))


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("cogvideox")])
def test_what_is_not_trained_says_so(name, tmp_path):
    files = [f"{key}={tmp_path}" for key in ("model.transformer", "model.autoencoder", "model.text_encoder", "data.path")]
    kind = ALL[name]["model"].get("conditioning", "none")
    text = (PRESETS / f"{name}.yaml").read_text("utf-8").split("\n")[1]
    assert ("Not trained here" in text) == (kind not in ("none", "image"))
    try:
        load(["train/cogvideox_lora"], [f"model.variant={name}", *files], {})
    except ValueError as error:
        assert f"found {kind}: such models are not trained here" in str(error) and "Not trained here" in text
    else:
        assert "Not trained here" not in text


@pytest.mark.parametrize("name", SANA_VIDEO)
def test_presets_of_sana_video_are_what_the_code_has(name):
    """Each under the name of its repository, in the tables of keys of released files."""
    values = ALL[name]
    published = values["model"]["published"]
    with torch.device("meta"):
        params = SanaVideo2Params(32, 2560, 20, tuple(range(3, 32, 4))) if "2.0" in values["model"]["title"] else SanaVideoParams(
            20, 20, 20, 112, **(dict(in_channels=128, out_channels=128, patch_size=1) if "720p" in name else {}))
        shapes = {key: tuple(t.shape) for key, t in from_canonical(network(params).state_dict(), "nvlabs").items()}
    assert set(published) <= {"diffusers", "native"}
    for repository in published.values():
        assert repository.startswith("Efficient-Large-Model/")
        found = identify_sana_video(shapes, None, repository)
        assert found.variant == values["model"]["title"] and found.params.latents == values["model"]["latents"]
        assert (found.params.causal if isinstance(found.params, SanaVideoParams) else found.params.distilled) == \
            values["model"].get("distilled", False)
        assert values["sampling"].get("shift") in (None, found.params.flow_shift)


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith("tiny")])
def test_presets_of_embedded_models_are_what_their_files_say(name):
    config = load([f"models/{name}"], ["train.kind=sprint"] if "sprint" in name else [], {}, complete=False).config
    for path in (config.model.autoencoder, config.model.text_encoder):
        assert Path(path).is_file() and ROOT / "models" in Path(path).parents
    if name == "tiny_sana_video" and not Path(config.model.transformer).is_file():
        pytest.skip("not trained yet")
    with safe_open(config.model.transformer, "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}
        stated = json.loads(file.metadata()["config"])
    identify = {"sana": identify_sana, "sana_video": identify_sana_video, "cogvideox": identify_cogvideo}[config.model.family]
    found = identify(shapes, stated, config.model.transformer)
    assert found.variant == config.model.title
    if isinstance(found.params, SanaParams):
        assert config.sampling.width == 32 * found.params.sample_size
        assert config.model.distilled == found.params.guidance_embeds
        assert config.model.distilled or config.sampling.shift == found.params.flow_shift
    elif isinstance(found.params, SanaVideoParams):
        assert config.model.latents == found.params.latents and config.sampling.shift == found.params.flow_shift
    else:
        assert (config.sampling.height, config.sampling.width) == (8 * found.params.sample_height, 8 * found.params.sample_width)
        assert config.sampling.shift == found.params.snr_shift_scale and config.model.conditioning == found.params.conditioning


def table(header):
    """Rows of the table in docs/models.md that starts with this header, as lists of cells."""
    lines = PAGE[PAGE.index(header):].split("\n")
    rows = []
    for line in lines[2:]:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split("|")])


def test_the_page_says_the_same_of_sana():
    rows = table("| model | repository on Hugging Face")
    assert len(rows) == 9
    for model, repositories, size, steps, cfg, shift in rows:
        for repository in re.findall(r"`(.*?)`", repositories):
            values = next(values for values in ALL.values()
                          if values["model"].get("published", {}).get("diffusers", "").endswith(f"/{repository}"))
            sampling = values["sampling"]
            assert sampling["width"] == int(size), model
            if shift == "none":
                assert "shift" not in sampling and steps == "1 to 4" and sampling["steps"] == 2 and cfg == "built in"
            else:
                assert (sampling["steps"], sampling["guidance"], sampling["shift"]) == (int(steps), float(cfg), float(shift)), model


def test_the_page_says_the_same_of_cogvideox():
    names = {"2B": ["cogvideox_2b"], "5B, 5B-I2V": ["cogvideox_5b", "cogvideox_5b_i2v"],
             "1.5-5B, 1.5-5B-I2V, ": ["cogvideox_1_5_5b", "cogvideox_1_5_5b_i2v"],
             "Fun 2B, 5B (InP 1.0 and 1.1, Control, Pose)": [
                 name for name in ALL if any(size in name for size in ("fun_2b", "fun_5b", "fun_1_0"))],
             "Fun 1.5 5B InP": ["cogvideox_fun_1_5_5b_inp"], "2B img2vid": ["cogvideox_2b_img2vid"],
             "VOID, first pass": ["cogvideox_void_pass1"], "VOID, second pass": ["cogvideox_void_pass2"]}
    rows = table("| model | size | frames | a second |")
    assert len(rows) == 8
    assert sum(len(found) for found in names.values()) == sum(name.startswith("cogvideox") for name in ALL)
    for model, size, frames, fps, steps, cfg in rows:
        for name in names.get(model) or names[f"{model}, "]:
            sampling = ALL[name]["sampling"]
            width, height = map(int, re.match(r"(\d+) x (\d+)", size).groups())
            assert (sampling["width"], sampling["height"]) == (width, height), name
            assert str(sampling["frames"]) in frames.split(" or "), name
            assert (sampling["fps"], sampling["steps"]) == (float(fps), int(steps)), name
            assert sampling["guidance"] == float(cfg.split(",")[0]), name
            assert sampling.get("dynamic_guidance", False) == ("dynamic" in cfg), name


def test_the_pages_say_the_same_of_sana_video():
    rows = table("| model | repository, under")
    assert len(rows) == len(SANA_VIDEO) == 5
    places = {"Wan 2.1": "wan", "LTX-2": "ltx2", "LTX-2.3": "ltx2"}
    for model, repositories, size, frames, fps, steps, cfg, shift, autoencoder in rows:
        name = next(name for name in SANA_VIDEO if any(
            "/" + re.findall(r"`(.*?)`", repositories)[0] + "/" in place + "/" for place in ALL[name]["model"]["published"].values()))
        sampling = ALL[name]["sampling"]
        assert f"{sampling['width']} x {sampling['height']}" == size, model
        assert frames == "any" or str(sampling["frames"]) in frames.split(", ")[0], model
        assert (sampling["fps"], sampling["steps"]) == (float(fps.split(",")[0]), int(steps.split()[0])), model
        assert (sampling["guidance"], sampling.get("shift")) == (float(cfg), None if shift == "none" else float(shift)), model
        assert ALL[name]["model"]["latents"] == places[autoencoder], model
    help_page = (ROOT / "web" / "docs" / "SanaCogLoadSanaVideoModel.md").read_text("utf-8")
    lines = [line for line in help_page.split("\n") if line.startswith("| ") and re.match(r"\| (2B|LongSANA|2\.0)", line)]
    assert len(lines) == 5
    for line in lines:
        model, size, *_, shift, score, _, _ = [cell.strip() for cell in line.strip("|").split("|")]
        words = {"2.0 5B": "SANA-Video 2.0 5B", "2.0 5B 4-step": "SANA-Video 2.0 5B 4-step"}.get(model, model)
        values = next(values for values in (ALL[name] for name in SANA_VIDEO) if values["model"]["title"].removeprefix("SANA-Video ")
                      == words.removeprefix("SANA-Video "))
        assert values["data"]["motion_score"] == int(score), model
        assert str(values["sampling"].get("shift", "none")).removesuffix(".0") == shift, model


# Files as the workflows name them.
FILES = {"Sana_1600M_1024px_BF16": "sana_1600m_1024px_bf16", "Sana_1600M_4Kpx_BF16": "sana_1600m_4k",
         "Sana_Sprint_1.6B_1024px": "sana_sprint_1600m",
         "CogVideoX-2b": "cogvideox_2b", "CogVideoX-5b/transformer": "cogvideox_5b",
         "CogVideoX-5b-Tora/transformer": "cogvideox_5b", "CogVideoX_1_5_5b_T2V_bf16": "cogvideox_1_5_5b",
         "CogVideoX_1_5_5b_I2V_bf16": "cogvideox_1_5_5b_i2v",
         "CogVideoX-Fun-V1.5-5b-InP": "cogvideox_fun_1_5_5b_inp", "CogVideoX-Fun-V1.1-5b-Control": "cogvideox_fun_5b_control",
         "sanacog_tiny_sana": "tiny_sana", "sanacog_tiny_cogvideox": "tiny_cogvideox",
         "sanacog_tiny_cogvideox_i2v": "tiny_cogvideox_i2v", "sanacog_tiny_sana_video": "tiny_sana_video",
         "SANA-Video_2B_480p_diffusers/transformer": "sana_video_2b_480p",
         "SANA-Video_2.0_5B_720p_4step/checkpoints/SANA_Video_2.0_5B_720p_4step.pth": "sana_video_2_0_5b_720p_4step"}
# Where a workflow shows something else than the preset, and what.
# Guided less, to keep more of the source.
EDITS = {"cogvideox_edit", "cogvideox_edit_first_frame", "cogvideox_flow_edit", "sana_inversion", "sana_rf_inversion"}
OTHERWISE = {("cogvideox_dynamic_guidance", "guidance"): 6.0,  # dynamic guidance begins at 1, so that its end is higher
             ("cogvideox_image_to_video_windows", "frames"): 17,  # more than the model makes, in windows
             ("cogvideox_flow_edit", "steps"): 25,             # what its settings were chosen with
             ("cogvideox_interpolate", "fps"): 16,             # frames between the model's 8 a second
             ("cogvideox_fun_control", "frames"): 9,           # of the embedded clip
             ("cogvideox_controlnet", "frames"): 9,
             ("sana_video_long", "frames"): 81}                # the embedded one's are as many as one likes
# The embedded CogVideoX draws two formats; these show the larger one.
LARGE = ("cogvideox_text_to_video", "cogvideox_image_to_video", "sana_to_cogvideox")
OF_LARGE = {"width": 128, "height": 128, "frames": 17, "fps": 16}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_workflows_sample_as_the_presets_say(path):
    nodes = json.loads(path.read_text("utf-8"))
    of_model = {}
    for key, node in nodes.items():
        if node["class_type"] in ("SanaCogLoadSanaModel", "SanaCogLoadSanaVideoModel", "SanaCogLoadCogVideoXModel"):
            of_model[key] = ALL[FILES[node["inputs"]["model_name"].removesuffix(".safetensors")]]
    assert of_model
    checked = 0
    for key, node in nodes.items():
        if node["class_type"] in ("TrainLoraNode", "ImageFromBatch"):  # steps of training; a number of pictures
            continue
        family = "cogvideox" if "CogVideoX" in node["class_type"] else "sana" if "Sana" in node["class_type"] else None
        family = "sana_video" if any(values["model"]["family"] == "sana_video" for values in of_model.values()) else family
        values = following(nodes, node, of_model) or next(
            (values for values in of_model.values() if values["model"]["family"] == family), next(iter(of_model.values())))
        sampling = values["sampling"]
        names = {"steps": "steps", "cfg": "guidance", "guidance": "guidance", "length": "frames", "fps": "fps"}
        if path.stem in EDITS:
            del names["cfg"]
        if node["class_type"] in ("SanaCogEmptySanaLatent", "SanaCogEmptyCogVideoXLatent", "SanaCogCogVideoXImageToVideo",
                                  "SanaCogSanaVideoImageToVideo", "EmptyHunyuanLatentVideo", "EmptyLTXVLatentVideo"):
            names |= {"width": "width", "height": "height"}
        if node["class_type"] in ("SanaCogQuantize", "CreateVideo", "SaveAnimatedWEBP"):
            names = {"fps": "fps"}
            values = next(iter(reversed(of_model.values())))
            sampling = values["sampling"]
        if path.stem in LARGE and sampling["width"] == 96:
            sampling = sampling | OF_LARGE
        if node["inputs"].get("motion_score"):
            assert node["inputs"]["motion_score"] == values["data"]["motion_score"]
        for given, name in names.items():
            value = node["inputs"].get(given)
            if isinstance(value, (int, float)) and name in sampling:
                assert OTHERWISE.get((path.stem, name), sampling[name]) == value, (node["class_type"], given)
                checked += 1
    assert checked


def following(nodes, node, of_model):
    """The preset of the model that a node's input `model` leads to, through patches of it."""
    source = node["inputs"].get("model")
    while isinstance(source, list):
        if source[0] in of_model:
            return of_model[source[0]]
        source = nodes[source[0]]["inputs"].get("model")
    return None


def test_presets_read_the_same_by_plain_yaml():
    """Whatever reads YAML can read them: no word in them means something else in YAML 1.1."""
    for name, values in ALL.items():
        assert yaml.safe_load((PRESETS / f"{name}.yaml").read_text("utf-8")) == values
