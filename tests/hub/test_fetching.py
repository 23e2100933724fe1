"""Fetching from a stand-in for the Hub: what is chosen, where it goes, what goes on where it stopped, and what is refused."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from huggingface_hub import HfApi

from sanacog.hub import catalogue, contents, fetching
from sanacog.storage.checkpoints import open_checkpoint

from .running import LORA, MODEL, ROOT, run, stored

MEGABYTES = f"{LORA.stat().st_size / 1e6:.2f} MB"  # that such a repository holds

TINY = {"vae": ROOT / "models" / "vae" / "sanacog_tiny_dcae.safetensors",
        "text_encoder": ROOT / "models" / "text_encoders" / "sanacog_tiny_gemma2.safetensors"}


def without_config(path):
    """A file's bytes, without the config inside: as released files are, whose config lies beside."""
    return safetensors.torch.save(safetensors.torch.load_file(path), {"format": "pt"})


def config_of(path):
    return json.loads(open_checkpoint(path).metadata["config"])


def sharded(tensors, name="model", variant=""):
    """{file: content} of two shards and their index."""
    keys, files, index = sorted(tensors), {}, {}
    for number, part in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 :]), 1):
        file = f"{name}{variant}-0000{number}-of-00002.safetensors"
        files[file] = safetensors.torch.save({key: tensors[key] for key in part}, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    files[f"{name}.safetensors.index{variant}.json"] = json.dumps({"weight_map": index}).encode()
    return files


def sana_repository():
    """{path: content} in the layout of a released Sana repository: several number types of each part, and what nobody needs."""
    files = {"model_index.json": b'{"_class_name": "SanaPipeline"}', "README.md": b"# card", ".gitattributes": b"x",
             "scheduler/scheduler_config.json": b"{}", "tokenizer/tokenizer.json": b"{}",
             "tokenizer/special_tokens_map.json": b"{}"}
    weights = without_config(MODEL)
    files |= {"transformer/config.json": json.dumps(config_of(MODEL)).encode(),
              "transformer/diffusion_pytorch_model.bf16.safetensors": weights,
              "transformer/diffusion_pytorch_model.safetensors": weights,
              "vae/config.json": json.dumps(config_of(TINY["vae"])).encode(),
              "vae/diffusion_pytorch_model.safetensors": without_config(TINY["vae"])}
    gemma = safetensors.torch.load_file(TINY["text_encoder"])
    files |= {f"text_encoder/{name}": content for name, content in (sharded(gemma, variant=".bf16") | sharded(gemma)).items()}
    return files | {"text_encoder/config.json": b'{"architectures": ["Gemma2Model"]}'}


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def got(hub):
    """Paths of the files that were asked for."""
    return [call.split()[1].split("/resolve/")[1].partition("/")[2] for call in hub.asked if "/resolve/" in call]


# --- what is chosen, and where it goes ---


def test_a_pipeline_goes_where_all_loaders_list_it(hub, tmp_path):
    hub.put("nv/Tiny_Sana_diffusers", sana_repository())
    status, printed, told = run("pull", "nv/Tiny_Sana_diffusers", "--to", tmp_path)
    assert status == 0, told
    assert below(tmp_path) == sorted("diffusers/Tiny_Sana/" + path for path in (
        "model_index.json", "transformer/config.json", "transformer/diffusion_pytorch_model.bf16.safetensors", "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors", "text_encoder/config.json", "text_encoder/model.bf16-00001-of-00002.safetensors",
        "text_encoder/model.bf16-00002-of-00002.safetensors", "text_encoder/model.safetensors.index.bf16.json",
        "tokenizer/tokenizer.json"))
    assert "Sana, 6 layers of width 128, 256px" in printed and "workflow sana_text_to_image" in printed
    for loader in ("Load Sana Model", "Load DC-AE", "Load Sana Text Encoder"):
        assert f"Choose Tiny_Sana in {loader}" in printed

    hub.asked.clear()
    status, printed, _ = run("pull", "nv/Tiny_Sana_diffusers", "--to", tmp_path)
    assert status == 0 and "Everything is there already." in printed and got(hub) == []

    (tmp_path / "diffusers" / "Tiny_Sana" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    status, printed, _ = run("pull", "nv/Tiny_Sana_diffusers", "--to", tmp_path)
    assert status == 0 and got(hub) == ["vae/diffusion_pytorch_model.safetensors"]
    assert contents.identify(tmp_path / "diffusers" / "Tiny_Sana" / "vae").family == "sana" and not (tmp_path / ".hub").exists()


def test_the_loaders_do_list_it(hub, tmp_path, comfyui_path):
    """In a ComfyUI, by the functions behind the loaders' lists."""
    hub.put("nv/Tiny_Sana_diffusers", sana_repository())
    hub.put("me/outline", {"pytorch_lora_weights.safetensors": LORA.read_bytes()})
    hub.put("me/sana", {"x.safetensors": MODEL.read_bytes()})
    models = tmp_path / "models"
    assert run("pull", "nv/Tiny_Sana_diffusers", "--to", models)[0] == run("pull", "me/outline", "--to", models)[0] == 0
    assert run("pull", "nv/Tiny_Sana_diffusers", "--to", models, "--only", "vae", "--name", "alone")[0] == 0
    assert run("pull", "me/sana", "--to", models)[0] == 0
    script = f"""
import sys; sys.argv = ["main.py", "--cpu", "--base-directory", {str(tmp_path)!r}]
sys.path.insert(0, {str(comfyui_path)!r})
import importlib.util
spec = importlib.util.spec_from_file_location("run", {str(ROOT / "run.py")!r})
run = importlib.util.module_from_spec(spec); spec.loader.exec_module(run); run.import_pack()
import comfy.options; comfy.options.enable_args_parsing()
from sanacog.host.files import choices, model_path
import folder_paths
for kind in ("diffusion_models", "vae", "text_encoders"):
    print(kind, choices(kind))
    assert model_path(kind, "Tiny_Sana").is_dir()
print("loras", folder_paths.get_filename_list("loras"))
"""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    for listed in ("'sana.safetensors'", "'alone/diffusion_pytorch_model.safetensors'", "loras ['outline.safetensors']"):
        assert listed in done.stdout


def test_a_part_is_one_file_under_the_repositorys_name(hub, tmp_path):
    """Where the file says by itself what it is, or is as the released ones."""
    inside = {"transformer/diffusion_pytorch_model.bf16.safetensors": MODEL.read_bytes()}
    hub.put("nv/Tiny_Sana_diffusers", sana_repository() | inside)
    status, printed, told = run("pull", "nv/Tiny_Sana_diffusers", "--to", tmp_path, "--only", "transformer")
    assert status == 0 and below(tmp_path) == ["diffusion_models/Tiny_Sana.safetensors"]
    assert run("pull", "nv/Tiny_Sana_diffusers", "--to", tmp_path, "--only", "transformer")[1].endswith("is there already.\n")
    status, _, told = run("pull", "nv/Tiny_Sana_diffusers", "--to", tmp_path, "--only", "controlnet")
    assert status == 1 and "has no controlnet; it has transformer, vae, text_encoder" in told


@pytest.mark.parametrize("words, workflow, only", [("sana 1.6b 1024 bf16", "sana_text_to_image", ["transformer"]),
                                                   ("gemma", "sana_text_to_image", []), ("dc-ae 1.1", "sana_text_to_image", []),
                                                   ("sana 4k", "sana_4k", ["transformer"]),
                                                   ("cogvideox vae", "cogvideox_1_5_image_to_video", []),
                                                   ("t5", "cogvideox_1_5_image_to_video", [])])
def test_names_are_those_of_the_shipped_workflows(hub, tmp_path, words, workflow, only):
    """So that what was fetched needs no choosing."""
    entry, = catalogue.find(words)
    file = entry.file or f"{only[0] + '/' if only else ''}diffusion_pytorch_model.safetensors"
    hub.put(entry.repository, {"model_index.json": b"{}", file: b""} if only else {file: b"", "other/weights.safetensors": b""} if
            entry.file else {file: b"", "config.json": b"{}"})
    api = HfApi(token=hub.token)
    plan = fetching.plan(api, entry.repository, None, tmp_path, only, entry.file, entry.called)
    names = {value for node in json.loads((ROOT / "workflows" / "api" / f"{workflow}.json").read_text()).values()
             for value in node["inputs"].values() if isinstance(value, str)}
    assert f"{plan.name}.safetensors" in names


def test_a_config_stays_with_a_file_that_needs_it(hub, tmp_path):
    """The tiny Sana's heads are in its config alone: without it, nobody could tell them."""
    hub.put("nv/Tiny_Sana_diffusers", sana_repository())
    status, printed, told = run("pull", "nv/Tiny_Sana_diffusers", "--to", tmp_path, "--only", "transformer")
    assert status == 0, told
    folder = "diffusion_models/Tiny_Sana/"
    assert below(tmp_path) == [folder + "config.json", folder + "diffusion_pytorch_model.bf16.safetensors"]
    assert contents.identify(tmp_path / folder / "diffusion_pytorch_model.bf16.safetensors").params.sample_size == 8
    assert run("pull", "nv/Tiny_Sana_diffusers", "--to", tmp_path, "--only", "transformer")[1].endswith("is there already.\n")

    hub.put("me/with-config-inside", {"a.safetensors": MODEL.read_bytes()})
    assert run("pull", "me/with-config-inside", "--to", tmp_path)[0] == 0
    assert (tmp_path / "diffusion_models" / "with-config-inside.safetensors").read_bytes() == MODEL.read_bytes()


def test_shards_are_a_folder(hub, tmp_path):
    weights = safetensors.torch.load_file(MODEL)
    files = sharded(weights, "diffusion_pytorch_model") | {"config.json": json.dumps(config_of(MODEL)).encode()}
    hub.put("me/big", files)
    assert run("pull", "me/big", "--to", tmp_path)[0] == 0
    assert below(tmp_path) == [f"diffusion_models/big/{name}" for name in sorted(files)]
    assert contents.identify(tmp_path / "diffusion_models" / "big").variant == "Sana, 6 layers of width 128, 256px"


@pytest.mark.parametrize("source, place, loader", [
    (LORA, "loras", "Load LoRA (Sana + CogVideoX)"),
    (ROOT / "models" / "controlnet" / "sanacog_tiny_sana_controlnet.safetensors", "controlnet", "Load Sana ControlNet"),
    (TINY["vae"], "vae", "Load DC-AE"), (TINY["text_encoder"], "text_encoders", "Load Sana Text Encoder"),
    (ROOT / "models" / "vae" / "sanacog_tiny_cogvideox_vae.safetensors", "vae", "Load CogVideoX VAE"),
    (ROOT / "models" / "text_encoders" / "sanacog_tiny_t5.safetensors", "text_encoders", "Load CogVideoX Text Encoder"),
    (ROOT / "models" / "diffusion_models" / "sanacog_tiny_cogvideox_i2v.safetensors", "diffusion_models", "Load CogVideoX Model"),
], ids=lambda value: getattr(value, "stem", None))
def test_a_file_goes_by_its_tensors(hub, tmp_path, source, place, loader):
    hub.put("me/thing", {"weights.safetensors": source.read_bytes(), "README.md": b""})
    status, printed, told = run("pull", "me/thing", "--to", tmp_path)
    assert status == 0, told
    assert below(tmp_path) == [f"{place}/thing.safetensors"] and loader in printed


def test_one_of_several(hub, tmp_path):
    hub.put("me/many", {"one.safetensors": LORA.read_bytes(), "deep/two.safetensors": MODEL.read_bytes()})
    status, _, told = run("pull", "me/many", "--to", tmp_path)
    assert status == 1 and "--file deep/two.safetensors  3.54 MB" in told and "--file one.safetensors" in told
    assert run("pull", "me/many", "--to", tmp_path, "--file", "no.safetensors")[0] == 1
    assert run("pull", "me/many", "--to", tmp_path, "--file", "deep/two.safetensors")[0] == 0
    assert run("pull", "me/many", "--to", tmp_path, "--file", "one.safetensors", "--name", "mine")[0] == 0
    assert below(tmp_path) == ["diffusion_models/two.safetensors", "loras/mine.safetensors"]


def test_an_entry_of_the_catalogue_knows_its_file(hub, tmp_path):
    hub.put("Comfy-Org/PixelDiT", {"text_encoders/gemma_2_2b_it_elm_bf16.safetensors": TINY["text_encoder"].read_bytes(),
                                   "diffusion_models/other.safetensors": b"x"})
    assert run("pull", "gemma", "--to", tmp_path)[0] == 0
    assert below(tmp_path) == ["text_encoders/gemma_2_2b_it_elm_bf16.safetensors"]  # as the shipped workflows call it


# --- versions ---


def test_by_tag_and_by_commit(hub, tmp_path):
    assert run("push", LORA, "me/outline", "--licence", "mit", "--tag", "v1")[0] == 0
    first = stored(hub, "me/outline")["pytorch_lora_weights.safetensors"]
    other = {key: 2 * t for key, t in safetensors.torch.load(first).items()}
    commit = hub.put("me/outline", {"pytorch_lora_weights.safetensors": safetensors.torch.save(other)})
    status, printed, told = run("pull", "me/outline@v1", "--to", tmp_path)
    place = tmp_path / "loras" / "outline.safetensors"
    assert status == 0 and place.read_bytes() == first and "Sana, 6 layers of width 128" in printed
    status, printed, told = run("pull", "me/outline", "--to", tmp_path)
    assert status == 1 and "is there already and is another file" in told and "--name NAME" in told
    assert run("pull", f"me/outline@{commit}", "--to", tmp_path, "--name", "newer")[0] == 0
    newer = safetensors.torch.load_file(tmp_path / "loras" / "newer.safetensors")
    assert newer.keys() == other.keys() and all(torch.equal(newer[key], t) for key, t in other.items())
    status, _, told = run("pull", "me/outline@v9", "--to", tmp_path)
    assert status == 1 and "has no branch, tag or commit v9" in told


# --- what breaks off ---


def test_it_goes_on_where_it_stopped(hub, tmp_path):
    hub.put("me/outline", {"x.safetensors": LORA.read_bytes()})
    hub.cut = 400_000
    status, _, told = run("pull", "me/outline", "--to", tmp_path)
    assert status == 1 and "cannot be reached" in told and "goes on where it stopped" in told
    half = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [(path.name, path.stat().st_size) for path in half] == [("x.safetensors.part", 400_000)] and ".hub" in half[0].parts
    hub.cut = None
    hub.asked.clear()
    assert run("pull", "me/outline", "--to", tmp_path)[0] == 0
    assert [call for call in hub.asked if "/resolve/" in call][0].endswith("bytes=400000-")
    assert (tmp_path / "loras" / "outline.safetensors").read_bytes() == LORA.read_bytes()
    assert below(tmp_path) == ["loras/outline.safetensors"]


def test_what_arrives_damaged_does_not_stay(hub, tmp_path):
    hub.put("me/outline", {"x.safetensors": LORA.read_bytes()})
    hub.cut = 400_000
    run("pull", "me/outline", "--to", tmp_path)
    next(tmp_path.rglob("*.part")).write_bytes(bytes(400_000))
    hub.cut = None
    status, _, told = run("pull", "me/outline", "--to", tmp_path)
    assert status == 1 and "arrived damaged, and was deleted" in told and below(tmp_path) == []
    assert run("pull", "me/outline", "--to", tmp_path)[0] == 0


def test_a_full_disk_is_told_before(hub, tmp_path, monkeypatch):
    hub.put("me/outline", {"x.safetensors": LORA.read_bytes()})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))
    status, printed, told = run("pull", "me/outline", "--to", tmp_path)
    assert status == 1 and f"{MEGABYTES} are still to come" in told and "has room for 1000 bytes" in told
    assert got(hub) == [] and below(tmp_path) == []


def test_a_dry_run_fetches_nothing(hub, tmp_path):
    hub.put("me/outline", {"x.safetensors": LORA.read_bytes()})
    status, printed, _ = run("pull", "me/outline", "--to", tmp_path, "--dry-run")
    assert status == 0 and f"x.safetensors  {MEGABYTES}" in printed and got(hub) == [] and below(tmp_path) == []


# --- what is not what it should be ---


def test_what_is_something_else_is_kept_out_of_sight(hub, tmp_path):
    junk = safetensors.torch.save({"double_blocks.0.img_attn.qkv.weight": torch.zeros(3, 3)})
    hub.put("me/junk", {"x.safetensors": junk})
    status, _, told = run("pull", "me/junk", "--to", tmp_path)
    assert status == 1 and "a FLUX transformer" in told and "kept out of the loaders' sight" in told
    assert [path.split("/")[0] for path in below(tmp_path)] == [".hub"]

    hub.put("me/page", {"x.safetensors": b"<!doctype html>"})
    status, _, told = run("pull", "me/page", "--to", tmp_path)
    assert status == 1 and "this is a web page" in told


def test_a_promised_model_is_that_model(hub, tmp_path):
    """By its repository, too: what lies there now is not what the catalogue says."""
    files = sana_repository()
    hub.put("Efficient-Large-Model/Sana_1600M_4Kpx_BF16_diffusers", files)
    status, _, told = run("pull", "sana", "4k", "--to", tmp_path)
    assert status == 1 and "should be Sana 1.6B 4K, and is Sana, 6 layers of width 128" in told
    assert {path.split("/")[0] for path in below(tmp_path)} == {".hub"}
    files["vae/diffusion_pytorch_model.safetensors"] = MODEL.read_bytes()
    hub.put("nv/mixed", files)
    status, _, told = run("pull", "nv/mixed", "--to", tmp_path, "--only", "vae")
    assert status == 1 and "should be a vae, and is Sana, 6 layers" in told


def test_nothing_lands_elsewhere(hub, tmp_path):
    hub.put("me/evil", {"../../x.safetensors": LORA.read_bytes()})
    status, _, told = run("pull", "me/evil", "--to", tmp_path / "models")
    assert status == 1 and "would lie outside its folder" in told
    hub.put("me/outline", {"x.safetensors": LORA.read_bytes()})
    for name in ("../x", "a/b", ".hub", ".."):
        status, _, told = run("pull", "me/outline", "--to", tmp_path / "models", "--name", name)
        assert status == 1 and "a name without folders" in told
    assert below(tmp_path) == []


# --- who is asked ---


def test_a_missing_repository(hub, tmp_path, monkeypatch):
    status, _, told = run("pull", "me/nothing", "--to", tmp_path)
    assert status == 1 and "me/nothing: there is no such repository" in told and "your token has no right to see it" in told
    monkeypatch.delenv("HF_TOKEN")
    assert "you are not signed in (`hf auth login`" in run("pull", "me/nothing", "--to", tmp_path)[2]
    status, _, told = run("pull", "me/no/thing", "--to", tmp_path)
    assert status == 1 and "is no name of a repository" in told


def test_a_gated_repository(hub, tmp_path):
    hub.put("me/gated", {"x.safetensors": LORA.read_bytes()}, gated=True)
    status, _, told = run("pull", "me/gated", "--to", tmp_path)
    assert status == 1 and f"Open {hub.url}/me/gated in a browser, sign in and accept its terms" in told


def test_a_wrong_token(hub, tmp_path, monkeypatch):
    hub.put("me/outline", {"x.safetensors": LORA.read_bytes()})
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    status, _, told = run("pull", "me/outline", "--to", tmp_path)
    assert status == 1 and "does not know this token" in told
    monkeypatch.delenv("HF_TOKEN")  # nobody has to sign in for what is public
    assert run("pull", "me/outline", "--to", tmp_path)[0] == 0


def test_no_network(hub, tmp_path):
    hub.server_close()
    hub.shutdown()
    status, _, told = run("pull", "me/outline", "--to", tmp_path)
    assert status == 1 and f"{hub.url} cannot be reached" in told and "Traceback" not in told
