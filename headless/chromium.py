"""A headless Chromium, driven by Playwright, which is imported when one is asked for: nothing else in this room needs it."""

import shutil
from contextlib import contextmanager
from pathlib import Path

from .hosts import SetupError

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium():
    """The system's, or the one that `playwright install chromium` fetched; one a process, for Playwright has no more.

    Raises SetupError where there is none, or it does not start.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise SetupError("the Python package playwright is not installed") from None
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, NAMES)), playwright.chromium.executable_path)
        if not Path(found).exists():
            raise SetupError("no Chromium was found")
        try:
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        except Error as error:
            raise SetupError(f"{found} does not start ({str(error).splitlines()[0]})") from None
        yield browser
        browser.close()
