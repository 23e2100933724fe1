"""What every test needs: the pack as the package `sanacog`, and nothing of its folder on the import path.

Fixture `server`: one ComfyUI for the whole session, with the pack in it (tests/comfy.py). What it prints while a test
runs is shown when the test fails.
"""

import importlib.util
import os
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# With the root on the path, `import nodes` would find the pack's folder nodes/ instead of ComfyUI's nodes.py.
sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != ROOT]
sys.dont_write_bytecode = True  # tests that import the host must not write into its folder

spec = importlib.util.spec_from_file_location("sanacog_run", ROOT / "run.py")
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
run.import_pack()

from .chromium import browser  # noqa: E402,F401  a fixture

LOG_AT_START = pytest.StashKey[int]()


# pytest tidies up on Ctrl-C only: let a SIGTERM end it in the same way, and the server with it.
signal.signal(signal.SIGTERM, signal.default_int_handler)
# xdist's workers ignore SIGINT, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow; --slow runs it"))


@pytest.fixture(scope="session")
def comfyui_path():
    """The folder of the ComfyUI that the tests run on."""
    from sanacog.headless import installation

    try:
        return installation.host()
    except installation.SetupError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def server(comfyui_path, tmp_path_factory):
    """A running ComfyUI with the pack and the embedded models: a `Comfy`."""
    from sanacog.headless.launcher import Server

    from .comfy import BROKEN_PACK, Comfy

    base = tmp_path_factory.mktemp("comfyui")
    # Nodes of paid services only cost time here.
    with Server(comfyui_path, base, arguments=["--disable-api-nodes", "--preview-method", "auto"]) as process:
        wrong = [line for line in process.read_log().splitlines() if any(sign in line for sign in BROKEN_PACK)
                 and "SanaCog" in line]
        if wrong:
            pytest.fail("\n".join(["the pack does not load", *wrong, process.read_log()[-4000:]]), pytrace=False)
        with Comfy(process) as client:
            yield client


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    client = getattr(item, "funcargs", {}).get("server")
    if client:
        item.stash[LOG_AT_START] = len(client.log())
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and report.when == "call" and LOG_AT_START in item.stash:
        printed = item.funcargs["server"].log()[item.stash[LOG_AT_START]:]
        report.sections.append(("What ComfyUI printed meanwhile", printed[-6000:]))
    return report
