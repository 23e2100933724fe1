"""Every node has a help page, served where the frontend asks for it and naming every input and output."""

import json

from .canvas import read
from .shipped import shipped, with_embedded_models


def nodes(server) -> dict:
    return {name: node for name, node in json.loads(read(f"{server.url}/object_info")).items() if name.startswith("SanaCog")}


def page_of(server, name: str, node: dict) -> str:
    folder = node["python_module"].split(".")[1]
    return read(f"{server.url}/extensions/{folder}/docs/{name}.md").decode()


def test_pages_name_every_input_and_output(server):
    assert nodes(server)
    for name, node in nodes(server).items():
        page = page_of(server, name, node)
        assert page.startswith(f"# {node['display_name']}\n")
        inputs = [key for kind in ("required", "optional") for key in node["input"].get(kind, {})]
        missing = [key for key in [*inputs, *node["output_name"]] if f"`{key}`" not in page]
        assert not missing, f"{name}.md does not explain {missing}"


def test_every_input_has_a_tooltip(server):
    for name, node in nodes(server).items():
        for kind in ("required", "optional"):
            for key, spec in node["input"].get(kind, {}).items():
                assert len(spec) > 1 and spec[1].get("tooltip"), f"{name}.{key} has no tooltip"


def test_help_opens_in_the_frontend(canvas, server):
    """The page is what a person reads after a click on the question mark of a node."""
    name = "SanaCogLoadSanaModel"
    node = nodes(server)[name]
    canvas.open(with_embedded_models(shipped("sana_quickstart")), "help")
    shown = canvas.help_of(name)
    first_sentence = page_of(server, name, node).splitlines()[2][:40]
    assert first_sentence in shown
