"""A headless Chromium for the tests: one a process, for Playwright has no more than one."""

import os
import shutil
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def unavailable(reason: str):
    """Skip on a person's machine; fail in CI, where the browser is part of what is promised."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and in CI the browser tests must run")
    pytest.skip(f"{reason}: the browser tests are not run")


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium: the system's, or the one that `playwright install chromium` fetched."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        unavailable("the Python package playwright is not installed")
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, NAMES)), playwright.chromium.executable_path)
        if not Path(found).exists():
            unavailable("no Chromium was found")
        try:
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        except Error as error:
            unavailable(f"{found} does not start ({str(error).splitlines()[0]})")
        yield browser
        browser.close()
