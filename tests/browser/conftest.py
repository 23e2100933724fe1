"""Fixtures for the browser tests: one page on the running ComfyUI."""

import pytest

from sanacog.headless.launcher import give_inputs

from ..host.tiny_cogvideox import save_fun_models
from .canvas import Canvas


@pytest.fixture(scope="session")
def files(server):
    """What workflows load: the pictures and videos, and random models of the kinds that the pack does not carry."""
    give_inputs(server.base)
    save_fun_models(server.base / "models" / "diffusion_models")


@pytest.fixture(scope="session")
def canvas(browser, server, files):
    """The frontend of the running ComfyUI, open in the browser: it asks what files there are when it starts."""
    return Canvas(browser, server.url)
