"""Every shipped workflow opens, converts and runs in the real frontend.

With SANACOG_WRITE_API=1 in the environment the files in `workflows/api` are written anew from the canvas files: the
way to refresh them after a workflow was changed in the browser.
"""

import io
import json
import os
import shutil

import pytest
from PIL import Image

from .canvas import read
from .shipped import NAMES, WORKFLOWS, graph, shipped, with_embedded_models


@pytest.fixture(scope="module", autouse=True)
def input_pictures(server):
    """The pictures that workflows load, where LoadImage looks for them."""
    for picture in (WORKFLOWS / "input").glob("*.png"):
        shutil.copy(picture, server.base / "input")


def test_workflows_are_shipped():
    assert "sana_quickstart" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_opens_without_a_fault(canvas, name):
    opened = canvas.open(with_embedded_models(shipped(name)), name)
    assert opened.faults() == []
    assert len(opened.nodes) == len(shipped(name)["nodes"])


@pytest.mark.parametrize("name", NAMES)
def test_api_file_is_the_same_graph(canvas, name):
    canvas.open(shipped(name), name)
    canvas.close_notices()
    api = canvas.to_api()
    file = WORKFLOWS / "api" / f"{name}.json"
    if os.environ.get("SANACOG_WRITE_API") == "1":
        file.write_text(json.dumps(api, indent=2) + "\n", "utf-8")
    assert graph(api) == graph(json.loads(file.read_text("utf-8")))


@pytest.mark.parametrize("name", NAMES)
def test_runs_and_the_picture_appears(canvas, name):
    canvas.open(with_embedded_models(shipped(name)), name)
    outputs = canvas.run()
    entries = [entry for output in outputs.values() for entry in output.get("images", [])]
    assert entries, "no node showed a picture"
    for entry in entries:
        picture = Image.open(io.BytesIO(canvas.picture(entry))).convert("RGB")
        darkest, brightest = zip(*picture.getextrema())
        assert max(b - d for d, b in zip(darkest, brightest)) > 30, "the picture is one flat colour"


def test_every_node_is_in_a_workflow(server):
    ours = {node for node in json.loads(read(f"{server.url}/object_info")) if node.startswith("SanaCog")}
    used = {node["type"] for name in NAMES for node in shipped(name)["nodes"]}
    assert ours and ours <= used


def test_browser_of_templates_lists_each_workflow_once(server):
    listed = [name for names in json.loads(read(f"{server.url}/workflow_templates")).values() for name in names
              if name.startswith("sana")]
    assert sorted(listed) == NAMES


def test_a_missing_node_is_noticed(canvas):
    workflow = with_embedded_models(shipped("sana_quickstart"))
    workflow["nodes"][0]["type"] = "SanaCogNoSuchNode"
    opened = canvas.open(workflow, "broken")
    assert opened.missing == ["SanaCogNoSuchNode"]
    assert any("SanaCogNoSuchNode" in notice for notice in opened.notices)
    canvas.close_notices()


def test_a_shifted_widget_is_noticed(canvas):
    workflow = with_embedded_models(shipped("sana_quickstart"))
    sampler = next(node for node in workflow["nodes"] if node["type"] == "KSampler")
    del sampler["widgets_values"][1]          # "control after generate", which files made by hand forget
    canvas.open(workflow, "shifted")
    with pytest.raises(RuntimeError):
        canvas.run()
    canvas.close_notices()
