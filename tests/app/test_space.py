"""The Space: its header, its versions, and that what it needs is in it."""

import re
import subprocess
import sys

import pytest
import yaml

from sanacog.app import space

from ..headless.test_requirements import reached, requirements
from ..unit.test_layers import ROOT

# https://huggingface.co/docs/hub/spaces-config-reference
FIELDS = {
    "title", "emoji", "colorFrom", "colorTo", "sdk", "python_version", "sdk_version", "suggested_hardware", "suggested_storage",
    "app_file", "app_build_command", "app_port", "base_path", "fullWidth", "header", "short_description", "models", "datasets", "tags",
    "thumbnail", "pinned", "hf_oauth", "hf_oauth_scopes", "hf_oauth_expiration_minutes", "hf_oauth_authorized_org",
    "disable_embedding", "startup_duration_timeout", "custom_headers", "preload_from_hub", "license"}
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


@pytest.fixture(scope="module")
def written(comfyui_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    try:
        space.write(folder, comfyui_path)
    except FileExistsError as error:
        pytest.skip(str(error))  # another ComfyUI than those that are locked
    return folder


def test_header(written):
    header = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", (written / "README.md").read_text("utf-8"), re.DOTALL)[1])
    assert set(header) <= FIELDS and {header["colorFrom"], header["colorTo"]} <= COLOURS
    assert header["sdk"] == "gradio" and len(header["short_description"]) <= 60 and len(header["emoji"].strip("\ufe0f")) == 1
    assert (written / header["app_file"]).is_file() and header["suggested_hardware"] == "cpu-basic"
    assert [f"gradio=={header['sdk_version']}"] == [str(line) for line in requirements(ROOT / "requirements-app.txt")]


def test_every_version_is_locked_and_nothing_of_the_tests_is_there(written):
    lines = requirements(written / "requirements.txt")
    assert all(str(line.specifier).startswith("==") for line in lines)
    names = {line.name for line in lines}
    assert {"torch", "gradio", "aiohttp", "av", "transformers", "numpy"} <= names and not {"pytest", "ray", "playwright"} & names


def test_all_that_the_page_imports_is_there(written):
    files, _ = reached([ROOT / "commands" / "app.py", ROOT / "__init__.py"], with_comfyui=True)
    missing = [file.relative_to(ROOT).as_posix() for file in files if not (written / file.relative_to(ROOT)).exists()]
    assert not missing and not list(written.rglob("__pycache__"))


def test_nothing_is_written_over(tmp_path, comfyui_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(FileExistsError, match="new or empty|COMFYUI_PATH"):
        space.write(tmp_path, comfyui_path)


def test_what_is_not_locked_is_named():
    with pytest.raises(ValueError, match="not-a-package is not in the lock"):
        space.locked(["not_a_package  # comment"], ["numpy==2.0.0"])


@pytest.mark.slow
def test_a_space_starts_in_a_clean_environment(written, tmp_path):
    """pip installs its requirements, and its page answers. Needs a network and some gigabytes."""
    import os
    import time
    import urllib.request

    from sanacog.headless.launcher import free_port, opener

    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(written / "requirements.txt")], check=True)
    port = free_port()
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1"}
    for name in ("COMFYUI_PATH", "COMFYUI_VERSION"):
        environment.pop(name, None)
    with subprocess.Popen([str(python), str(written / "space" / "app.py")], env=environment) as process:
        try:
            for _ in range(600):
                try:
                    config = opener.open(f"http://127.0.0.1:{port}/config", timeout=5).read()
                    break
                except (OSError, urllib.error.URLError):
                    assert process.poll() is None, "the Space has ended"
                    time.sleep(1)
            assert b"sana_text" in config
        finally:
            process.terminate()
            process.wait(60)
