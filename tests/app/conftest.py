"""The page in front of the ComfyUI of the tests, and a browser."""

import pytest

from sanacog.app.look import CSS, HEAD, theme
from sanacog.app.offers import Offers
from sanacog.app.page import Studio, build
from sanacog.headless.launcher import Server, give_inputs

from ..comfy import Comfy


@pytest.fixture(scope="session")
def server(comfyui_path, tmp_path_factory):
    """A ComfyUI of its own: the other tests' has their broken files among its models, which the page would offer."""
    base = tmp_path_factory.mktemp("page")
    with Server(comfyui_path, base, arguments=["--disable-api-nodes", "--preview-method", "auto"]) as process:
        with Comfy(process) as client:
            yield client


@pytest.fixture(scope="session")
def address(server, tmp_path_factory):
    """Where the page answers."""
    give_inputs(server.base)
    page = build(Studio(server, Offers(server.get), tmp_path_factory.mktemp("results")))
    _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, ssr_mode=False, theme=theme(), css=CSS,
                                head=HEAD)
    yield address
    page.close(verbose=False)
