"""Every shipped workflow opens, converts and runs in the real frontend.

With SANACOG_WRITE_API=1 in the environment the files in `workflows/api` are written anew from the canvas files: the
way to refresh them after a workflow was changed in the browser. On the oldest ComfyUI: newer ones write inputs that it
does not know, and read files without them.
"""

import json
import os

import pytest

from sanacog.headless.canvas import read

from ..comfy import default, frames_of, specs
from .shipped import FRAMES, LARGER, LONGER, NAMES, SIDE, TO_OPEN, TO_RUN, WORKFLOWS, graph, shipped, with_embedded_models


def skip_without(server, needed, name):
    """needed: {workflow: a node}."""
    if needed.get(name, "KSampler") not in server.object_info:
        pytest.skip(f"this ComfyUI has no {needed[name]}")


def test_workflows_are_shipped():
    assert "sana_quickstart" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_opens_without_a_fault(canvas, server, name):
    skip_without(server, TO_OPEN, name)
    opened = canvas.open(with_embedded_models(shipped(name)), name)
    assert opened.faults() == []
    assert len(opened.nodes) == len(shipped(name)["nodes"])


def as_it_was(api, written, object_info):
    """An API workflow without the inputs that stock nodes have gained since it was written, where they are at their
    defaults."""
    for key, node in api.items():
        if key in written and not node["class_type"].startswith("SanaCog"):
            known = specs(object_info[node["class_type"]]["input"], node["inputs"])
            node["inputs"] = {name: value for name, value in node["inputs"].items()
                              if name in written[key]["inputs"] or name not in known or value != default(known[name])}
    return api


def api_file(name):
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text("utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_api_file_is_the_same_graph(canvas, server, name):
    skip_without(server, TO_OPEN, name)
    canvas.open(shipped(name), name)
    canvas.close_notices()
    api = canvas.to_api()
    if os.environ.get("SANACOG_WRITE_API") == "1":
        (WORKFLOWS / "api" / f"{name}.json").write_text(json.dumps(api, indent=2) + "\n", "utf-8")
    written = api_file(name)
    assert graph(as_it_was(api, written, server.object_info)) == graph(written)


def test_missing_files_are_offered(canvas):
    """The frontend itself offers to download the files of a workflow that are not there."""
    workflow = shipped("sana_text_to_image")
    canvas.open(workflow, "missing files")
    offered = canvas.files_offered()
    files = [model["name"] for node in workflow["nodes"] for model in node["properties"].get("models", [])]
    assert len(files) == 3 and all(file in offered for file in files), offered
    canvas.close_notices()


@pytest.mark.parametrize("name", NAMES)
def test_runs_and_the_picture_appears(canvas, server, name):
    skip_without(server, TO_RUN, name)
    canvas.open(with_embedded_models(shipped(name)), name)
    outputs = canvas.run()
    entries = [entry for output in outputs.values() for entry in output.get("images", [])]
    assert entries, "no node showed a picture"
    clips = {}
    for entry in entries:
        frames = frames_of(entry["filename"], canvas.file(entry))
        clips[entry["filename"].rpartition(".")[2]] = frames
        seen = frames.reshape(-1, 3)
        assert (seen.max(0) - seen.min(0)).max() > 30, f"{entry['filename']} is one flat colour"
    if "cogvideox" in name or "sana_video" in name:
        side = LARGER.get(name, SIDE)
        assert clips["mp4"].shape == clips["webp"].shape == (LONGER.get(name, FRAMES), side, side, 3)
        assert (clips["mp4"].astype(int) - clips["mp4"][0]).std((1, 2, 3)).max() > 1, "nothing moves"
    # The API file runs as it is, whatever inputs stock nodes have gained. With the same values: they are in the cache.
    now, written = canvas.to_api(), api_file(name)
    for key, node in written.items():
        node["inputs"] = {input: now[key]["inputs"].get(input, value) for input, value in node["inputs"].items()}
    assert len(server.run(written, 600).files()) == len(entries)


def test_every_node_is_in_a_workflow(server):
    ours = {node for node in json.loads(read(f"{server.url}/object_info")) if node.startswith("SanaCog")}
    used = {node["type"] for name in NAMES for node in shipped(name)["nodes"]}
    assert ours and ours <= used


def test_browser_of_templates_lists_each_workflow_once(server):
    listed = [name for names in json.loads(read(f"{server.url}/workflow_templates")).values() for name in names
              if name.startswith(("sana", "cogvideox"))]
    assert sorted(listed) == NAMES


def test_a_missing_node_is_noticed(canvas):
    workflow = with_embedded_models(shipped("sana_quickstart"))
    workflow["nodes"][0]["type"] = "SanaCogNoSuchNode"
    opened = canvas.open(workflow, "broken")
    assert opened.missing == ["SanaCogNoSuchNode"]
    # Newer frontends name it in a panel beside the canvas.
    assert any("SanaCogNoSuchNode" in notice or "issing" in notice for notice in opened.notices), opened.notices
    canvas.close_notices()


def test_a_shifted_widget_is_noticed(canvas):
    workflow = with_embedded_models(shipped("sana_quickstart"))
    sampler = next(node for node in workflow["nodes"] if node["type"] == "KSampler")
    del sampler["widgets_values"][1]          # "control after generate", which files made by hand forget
    canvas.open(workflow, "shifted")
    with pytest.raises(RuntimeError):
        canvas.run()
    canvas.close_notices()
