"""Every example in docs/api.md does what the page says: its bash blocks run in order as one script, its Python blocks as
another, against the real server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "http://127.0.0.1:8188"
BLOCKS = re.findall(r"^```(.*)\n((?s:.*?))^```$", (ROOT / "docs" / "api.md").read_text("utf-8"), re.MULTILINE)
RUN = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}


@pytest.fixture(scope="module")
def folder(server, tmp_path_factory):
    """As custom_nodes, with the pack in it, after both scripts ran: (folder, what they printed)."""
    folder = tmp_path_factory.mktemp("custom_nodes")
    (folder / "ComfyUI-SanaCog").symlink_to(ROOT, target_is_directory=True)
    environment = {**os.environ, "no_proxy": "127.0.0.1", "PYTHONDONTWRITEBYTECODE": "1"}
    printed = {}
    for language, command in RUN.items():
        script = "".join(text for name, text in BLOCKS if name == language)
        assert ADDRESS in script
        done = subprocess.run([*command, script.replace(ADDRESS, server.url)], cwd=folder, env=environment, text=True,
                              capture_output=True, timeout=300)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        printed[language] = done.stdout
    return folder, printed


def test_there_are_no_blocks_that_are_not_run():
    assert {name for name, _ in BLOCKS} == set(RUN) and len(BLOCKS) == (ROOT / "docs" / "api.md").read_text().count("```") / 2


def test_curl(folder):
    folder, printed = folder
    assert Image.open(folder / "picture.png").size == (256, 256)
    history, = json.loads((folder / "history.json").read_text()).values()
    assert history["status"]["completed"]
    sent = json.loads((folder / "body.json").read_text())["prompt_id"]
    assert f'"prompt_id": "{sent}"' in printed["bash"] and '"name": "picture.png"' in printed["bash"]


def test_python(folder):
    folder, printed = folder
    printed = printed["python"]
    pictures = [Image.open(file) for file in folder.glob("quickstart_*.png")]
    assert len(pictures) == 1 and json.loads(pictures[0].info["prompt"])["7"]["inputs"]["seed"] == 42
    assert "step 20 of 20" in printed and len(list(folder.glob("preview.*"))) == 1
    assert re.search("before the last one: [123]$", printed, re.MULTILINE)
    assert "['execution_success', 'execution_success', 'execution_interrupted']" in printed
    drawn, inverted = (Image.open(folder / name).convert("RGB").getpixel((0, 0)) for name in ("picture.png", "inverted.png"))
    assert all(abs(one + other - 255) <= 1 for one, other in zip(drawn, inverted))
    assert re.search(r"^(refused|failed): .*not_there", printed, re.MULTILINE)
