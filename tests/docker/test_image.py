"""The real Dockerfile, built by buildah on a base of Debian's packages, started and asked over HTTP.

Needs root, and Debian's buildah and mmdebstrap. What pip installs is not installed once more: the environment and the ComfyUI of
this folder are mounted where the Dockerfile makes them, so that its set-up finds them done. There is no GPU in it and no daemon.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sanacog.headless import installation, launcher
from sanacog.headless.client import Client

from ..unit.test_layers import ROOT
from .test_files import DOCKERFILE

USER = "12345:12345"  # one that the image does not know
HOME = "/opt/sanacog"


def packages():
    """The line of apt's sources for this Debian, without those that are only for it."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text("utf-8"), re.M))
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    found = "".join(path.read_text("utf-8") for path in Path("/etc/apt").rglob("*") if path.suffix in (".sources", ".list"))
    mirror = re.search(r"^(?:URIs: |deb (?:\[.*?\] )?)(\S+/debian)\b", found, re.M)
    return f"deb [signed-by={keys}] {mirror[1]} {release['VERSION_CODENAME']} main"


class Buildah:
    """root: its storage. Everything in it is deleted at the end."""

    def __init__(self, root):
        self.root = root
        self.environment = {**os.environ, "BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs", "TMPDIR": str(root)}

    def command(self, *arguments):
        return ["buildah", "--root", str(self.root / "storage"), "--runroot", str(self.root / "run"), *map(str, arguments)]

    def __call__(self, *arguments):
        done = subprocess.run(self.command(*arguments), env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True)
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    def start(self, *arguments, **options):
        return subprocess.Popen(self.command(*arguments), env=self.environment, **options)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """(Buildah, the arguments that mount what was installed already)."""
    missing = [name for name in ("buildah", "mmdebstrap") if not shutil.which(name)]
    if missing or os.getuid():
        pytest.fail(f"needs root and {', '.join(missing) or 'nothing else'}")
    host = installation.chosen()
    assert not os.environ.get("COMFYUI_PATH") or Path(os.environ["COMFYUI_PATH"]).samefile(host.folder)
    root = tmp_path_factory.mktemp("buildah")
    buildah = Buildah(root)
    try:
        subprocess.run(["mmdebstrap", "--variant=minbase", "--include=python3,python3-venv", '--customize-hook=chmod 755 "$1/root"',
                        "--quiet", "", str(root / "base.tar"), packages()], check=True)
        (root / "Dockerfile.base").write_text("FROM scratch\nADD base.tar /\n")
        buildah("bud", "-q", "-t", "localhost/base", "-f", root / "Dockerfile.base", root)
        (root / "base.tar").unlink()
        # The environment's Python is a link to the one that made it.
        mounts = [argument for source, target in (
            (host.environment.resolve(), f"{HOME}/.venv"), (host.folder.resolve(), f"{HOME}/.host/{host.folder.name}"),
            (Path(sys.base_prefix), sys.base_prefix)) for argument in ("--volume", f"{source}:{target}:ro")]
        buildah("bud", "-q", "--format", "docker", "--layers=false", *mounts, "--build-arg", "BASE=localhost/base", "-t", "sanacog",
                "-f", DOCKERFILE, ROOT)
        yield buildah, mounts
    finally:
        buildah("rm", "--all")
        buildah("rmi", "--all", "--force")


@pytest.mark.slow
def test_it_says_what_it_is(image):
    buildah, _ = image
    config = json.loads(buildah("inspect", "--type", "image", "sanacog"))["Docker"]["config"]
    assert config["User"] == "1000:1000" and set(config["ExposedPorts"]) == {"8188/tcp", "7860/tcp"}
    assert set(config["Volumes"]) == {"/data/models", "/data/input", "/data/output", "/data/user"}
    assert config["Healthcheck"]["Test"][0] == "CMD" and config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


@pytest.mark.slow
def test_it_draws_as_any_user_and_ends_on_a_term_signal(image, tmp_path):
    buildah, mounts = image
    config = json.loads(buildah("inspect", "--type", "image", "sanacog"))["Docker"]["config"]
    port = 8188
    assert launcher.is_free(port)
    container = buildah("from", "--pull-never", "sanacog").split()[-1]
    arguments = ["run", "--user", USER, *mounts, container, "--"]
    with open(tmp_path / "log", "wb") as log:
        process = buildah.start(*arguments, *config["Entrypoint"], *config["Cmd"], stdout=log, stderr=log)
        try:
            wait_until_healthy(buildah, [*arguments, *config["Healthcheck"]["Test"][1:]], process, tmp_path / "log")
            name = draw(f"http://127.0.0.1:{port}")
            # It lies in the volume, which buildah keeps beside the container.
            assert [file.stat().st_uid for file in (buildah.root / "storage").rglob(name)] == [int(USER.split(":")[0])]
            inside, = started(config)
            os.kill(inside, signal.SIGTERM)
            assert process.wait(60) == 0, (tmp_path / "log").read_text()[-4000:]
        finally:
            for left in started(config):
                os.kill(left, signal.SIGKILL)
            process.wait()
    said = (tmp_path / "log").read_text("utf-8", errors="replace")
    assert "No GPU, it computes on the CPU: no NVIDIA driver" in said and "Traceback" not in said
    assert launcher.is_free(port)


def started(config):
    """The process ids of what the image starts; there are no others of this kind on the machine."""
    words = [word.encode() for word in (config["Entrypoint"][-1], *config["Cmd"])]
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if cmdline.read_bytes().split(b"\0")[1:-1] == words:
                found.append(int(cmdline.parent.name))
        except OSError:
            continue  # it has just gone
    return found


def wait_until_healthy(buildah, check, process, log, seconds=180):
    end = time.monotonic() + seconds
    while True:
        asked = buildah.start(*check, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said = asked.communicate()[0]
        if asked.returncode == 0:
            return
        assert process.poll() is None and time.monotonic() < end, f"{said.decode()}\n{log.read_text()[-4000:]}"
        time.sleep(1)


def draw(url):
    """The name of the picture that was saved."""
    workflow = json.loads((ROOT / "workflows" / "api" / "sana_quickstart.json").read_text("utf-8"))
    with Client(url) as client:
        files = client.run(workflow, timeout_s=300).files()
        assert files[0]["type"] == "output" and client.file(files[0]).startswith(b"\x89PNG")
        return files[0]["filename"]
