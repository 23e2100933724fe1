"""A headless Chromium for the tests: one a process, for Playwright has no more than one."""

import os
from contextlib import ExitStack

import pytest

from sanacog.headless.chromium import chromium
from sanacog.headless.hosts import SetupError


def unavailable(reason: str):
    """Skip on a person's machine; fail in CI, where the browser is part of what is promised."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and in CI the browser tests must run")
    pytest.skip(f"{reason}: the browser tests are not run")


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium: the system's, or the one that `playwright install chromium` fetched."""
    with ExitStack() as stack:
        try:
            browser = stack.enter_context(chromium())
        except SetupError as error:
            unavailable(str(error))
        yield browser
