"""What the image starts, with a stand-in for ComfyUI that starts at once."""

import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from sanacog.commands import container
from sanacog.headless import launcher

from ..headless.test_launcher import RUN, STAND_IN, gone

START = """
import importlib.util, signal
from pathlib import Path
spec = importlib.util.spec_from_file_location("start", {run!r})
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
signal.signal(signal.SIGTERM, run.interrupt)
container = run.room("commands.container")
container.BASE, container.PORT = Path({base!r}), {port}
print("status", run.main(["container", "--here"]), flush=True)
"""


@pytest.fixture
def host(tmp_path):
    folder = tmp_path / "host"
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").write_text(f"import sys; print(sys.argv[1:], flush=True)\n{STAND_IN}")
    return folder


def start(host, base, port, **environment):
    text = START.format(run=str(RUN), base=str(base), port=port)
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, "COMFYUI_PATH": str(host), **environment})


def test_it_passes_arguments_on_and_ends_on_a_term_signal(host, tmp_path):
    port = launcher.free_port()
    process = start(host, tmp_path / "data", port, SANACOG_ARGS='--lowvram --reserve-vram "1.5"')
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if "answers" in line:
            break
    urllib.request.urlopen(f"http://127.0.0.1:{port}/system_stats", timeout=10).close()
    pids = [int(pid) for pid in (tmp_path / "data" / "pids").read_text().split()]
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=30)[0]
    assert process.returncode == 0 and "status 0" in rest and gone(pids), rest
    said = "\n".join(lines)
    assert "'--listen', '0.0.0.0'" in said and "'--lowvram', '--reserve-vram', '1.5'" in said
    assert "computes on the CPU" in said and "'--cpu'" in said
    assert list((tmp_path / "data" / "input").iterdir())


@pytest.mark.parametrize("environment, said", [
    ({"SANACOG_REQUIRE_GPU": "1"}, "No GPU: "), ({"SANACOG_ARGS": "--listen 'x"}, "SANACOG_ARGS cannot be read")])
def test_it_says_what_is_missing_before_it_starts(host, tmp_path, monkeypatch, environment, said):
    monkeypatch.setattr(launcher, "has_accelerator", lambda: False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(container, "BASE", tmp_path / "data")
    with pytest.raises(launcher.LaunchError, match=said):
        container.main([])
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("status, said", [(None, "--gpus all"), (100, "cuInit: 100")])
def test_the_reason_why_there_is_no_gpu(monkeypatch, status, said):
    monkeypatch.setattr(launcher, "has_accelerator", lambda: False)
    monkeypatch.setattr(launcher, "driver_status", lambda: status)
    assert said in container.missing_for_a_gpu() and "\n" not in container.missing_for_a_gpu()


def test_pytorch_gives_its_reason(monkeypatch):
    monkeypatch.setattr(launcher, "has_accelerator", lambda: False)
    monkeypatch.setattr(launcher, "driver_status", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "Error: " in container.missing_for_a_gpu()


def test_a_folder_that_may_not_be_written_to(monkeypatch, tmp_path):
    def refuse(base):
        raise PermissionError(13, "Permission denied", str(tmp_path / "models"))
    monkeypatch.setattr(launcher, "has_accelerator", lambda: True)
    monkeypatch.setattr(launcher, "make_base", refuse)
    with pytest.raises(launcher.LaunchError, match=r"may not write to .*models.*chown"):
        container.main([])
