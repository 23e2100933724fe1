"""The folder that is a Space: its header has documented fields alone, its packages are those of the lock, and it starts."""

import os
import subprocess
import sys
import time
import urllib.request

import pytest
import yaml
from packaging.requirements import Requirement

from sanacog.app import space
from sanacog.headless import installation
from sanacog.headless.launcher import ROOT, free_port

# https://huggingface.co/docs/hub/spaces-config-reference
FIELDS = {"title", "emoji", "colorFrom", "colorTo", "sdk", "python_version", "sdk_version", "suggested_hardware", "suggested_storage",
          "app_file", "app_build_command", "app_port", "base_path", "fullWidth", "header", "short_description", "models", "datasets",
          "tags", "thumbnail", "pinned", "hf_oauth", "hf_oauth_scopes", "hf_oauth_expiration_minutes", "disable_embedding",
          "startup_duration_timeout", "custom_headers", "preload_from_hub", "license"}
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


@pytest.fixture(scope="module")
def written(tmp_path_factory, comfyui_path):
    folder = tmp_path_factory.mktemp("space") / "space"
    space.write(folder)
    return folder


def test_the_header_has_documented_fields_alone():
    header = yaml.safe_load((ROOT / "space" / "README.md").read_text("utf-8").split("---\n")[1])
    assert set(header) <= FIELDS
    assert {header["colorFrom"], header["colorTo"]} <= COLOURS and header["sdk"] == "gradio" and len(header["short_description"]) <= 60
    gradio, = [line for line in (ROOT / "requirements-app.txt").read_text("utf-8").splitlines() if line.startswith("gradio")]
    assert gradio == f"gradio=={header['sdk_version']}"


def test_it_has_the_pack_and_no_more(written):
    names = {path.name for path in written.iterdir()}
    assert {"app.py", "run.py", "models", "nodes", "host", "app", "workflows", "README.md", "requirements.txt"} <= names
    assert not names & {".git", "tests", ".venv", ".host", "output"}
    assert (written / "README.md").read_text("utf-8").startswith("---\ntitle:")
    assert sum(path.stat().st_size for path in written.rglob("*") if path.is_file()) < 60e6


def test_its_packages_are_those_of_the_lock(written, comfyui_path):
    index, *lines = (written / "requirements.txt").read_text("utf-8").splitlines()
    assert index == "--extra-index-url https://download.pytorch.org/whl/cpu"
    names = {Requirement(line).name for line in lines}
    assert {"torch", "gradio", "aiohttp", "pyyaml", "safetensors", "comfyui-frontend-package"} <= names
    assert not [name for name in names if name.startswith(("nvidia", "triton", "ray", "pytest", "diffusers"))]
    if "COMFYUI_PATH" not in os.environ or installation.chosen().folder.samefile(os.environ["COMFYUI_PATH"]):
        locked = installation.chosen().lock.read_text("utf-8")
        assert all(line in locked for line in lines)


def test_a_folder_with_something_in_it_is_let_be(tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ValueError, match="is not empty"):
        space.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
def test_it_starts_from_its_folder(written, comfyui_path):
    """With this environment's packages; a Space fetches ComfyUI, which is linked here."""
    host = installation.chosen()
    (written / ".host").mkdir()
    (written / ".host" / host.folder.name).symlink_to(comfyui_path)
    port = free_port()
    text = (written / "app.py").read_text("utf-8").replace("7860", str(port))
    (written / "app.py").write_text(text, "utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}
    process = subprocess.Popen([sys.executable, "app.py"], cwd=written, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 180
        while True:
            try:
                assert urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).status == 200
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end
                time.sleep(1)
    finally:
        process.terminate()
        said = process.communicate(timeout=60)[0].decode()
    assert "Traceback" not in said, said
