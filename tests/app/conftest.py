"""The page in front of the ComfyUI of the tests."""

import pytest

from sanacog.app.offers import Offers
from sanacog.app.page import build, look


@pytest.fixture(scope="session")
def address(server):
    """Where the page answers."""
    page = build(server, Offers(server.object_info))
    _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, ssr_mode=False, **look())
    yield address
    page.close(verbose=False)
