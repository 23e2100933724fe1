"""The page in front of the ComfyUI of the tests, and the browser."""

import pytest

from sanacog.app.offers import Offers
from sanacog.app.page import build, look

from ..browser.conftest import browser  # noqa: F401


@pytest.fixture(scope="session")
def address(server):
    """Where the page answers."""
    page = build(server, Offers(server.object_info))
    _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, ssr_mode=False, **look())
    yield address
    page.close(verbose=False)
