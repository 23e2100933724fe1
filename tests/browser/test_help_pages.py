"""Every node has a help page, served where the frontend asks for it and naming every input and output; the main ones show
a picture."""

import io
import json
import re

from PIL import Image

from sanacog.commands.help_pictures import DRAWN, PICTURES
from sanacog.headless.canvas import read

from .shipped import shipped, with_embedded_models


def nodes(server) -> dict:
    return {name: node for name, node in json.loads(read(f"{server.url}/object_info")).items() if name.startswith("SanaCog")}


def docs(server, node: dict) -> str:
    """The address below which the pack's help pages and their pictures are."""
    return f"{server.url}/extensions/{node['python_module'].split('.')[1]}/docs"


def page_of(server, name: str, node: dict) -> str:
    return read(f"{docs(server, node)}/{name}.md").decode()


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
    (address, width), = canvas.help_pictures()
    assert address.endswith("/docs/pictures/text_to_image.jpg") and width > 100


def test_pictures_are_served_and_small(server):
    shown = set()
    for name, node in nodes(server).items():
        for words, address in re.findall(r"!\[(.*?)\]\((.*?)\)", page_of(server, name, node)):
            data = read(f"{docs(server, node)}/{address}")
            assert words and len(data) < 60_000 and Image.open(io.BytesIO(data)).width <= 640, f"{address} in {name}.md"
            shown.add(address)
    assert shown == {f"pictures/{file.name}" for file in PICTURES.iterdir()} == {f"pictures/{name}.jpg" for name in DRAWN}
