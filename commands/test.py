"""python run.py test: the whole test suite. More arguments go to pytest; --slow runs the slow tests too."""

import os
import shutil
import subprocess
from pathlib import Path

from ..headless import installation

ROOT = Path(__file__).resolve().parents[1]


def main(arguments):
    """Run pytest; returns its exit status. Raises SetupError."""
    os.chdir(ROOT)
    os.environ["COMFYUI_PATH"] = str(installation.host())
    if os.environ.get("CI") == "true":
        install_chromium()
    import pytest
    folders = all(Path(argument).is_dir() or argument.startswith("-") for argument in arguments)  # or none: the whole suite
    return int(pytest.main([*side_by_side(), *arguments] if folders else arguments))


def side_by_side():
    """pytest's arguments for many tests: a process a core, up to four. A file's tests stay together, since
    they share what was expensive to make."""
    workers = max(1, min(4, os.cpu_count() or 1))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))  # they would fight for cores
    return ["-n", str(workers), "--dist", "loadfile"]


def install_chromium():
    """For the browser tests in CI: from the system's packages, where a root may install them."""
    if any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))) or not shutil.which("apt-get"):
        return
    print("Installing Chromium ...", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
        # A failure shows in the browser tests, which say what is missing.
        subprocess.run(["apt-get", *command], env=environment, stdout=subprocess.DEVNULL)
