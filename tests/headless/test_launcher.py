"""The ComfyUI process of run.py, with a stand-in for ComfyUI that starts at once."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sanacog.headless import launcher
from sanacog.headless.launcher import LaunchError, Server

RUN = Path(launcher.ROOT) / "run.py"

STAND_IN = """
import http.server, os, pathlib, subprocess, sys
option = lambda name: sys.argv[sys.argv.index(name) + 1]
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"system": {}}')
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(option("--base-directory"), "pids").write_text(f"{os.getpid()} {child.pid}")
print("at work", flush=True)
http.server.HTTPServer(("127.0.0.1", int(option("--port"))), Answer).serve_forever()
"""


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(launcher, "has_accelerator", lambda: False)


@pytest.fixture
def host(tmp_path):
    def make(program):
        folder = tmp_path / "host"
        (folder / "comfy").mkdir(parents=True)
        (folder / "main.py").write_text(program)
        return folder
    return make


def runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")  # a process that has ended and that nobody has asked for yet is a Z
    return not (state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def gone(pids, seconds=10):
    end = time.monotonic() + seconds
    while any(map(runs, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(runs, pids))


def test_start_and_stop(host):
    with Server(host(STAND_IN)) as server:
        assert server.answers() and "at work" in server.read_log()
        assert (server.base / "custom_nodes" / launcher.PACK_NAME / "run.py").samefile(RUN)
        pids = list(map(int, (server.base / "pids").read_text().split()))
        assert all(map(runs, pids))
    assert gone(pids) and not server.base.exists()
    assert RUN.exists()  # the link went, not what it leads to


def test_an_error_of_the_caller_ends_the_server(host):
    with pytest.raises(ZeroDivisionError), Server(host(STAND_IN)) as server:
        pids = list(map(int, (server.base / "pids").read_text().split()))
        raise ZeroDivisionError
    assert gone(pids) and not server.base.exists()


def test_taken_port(host):
    with socket.socket() as other:
        other.bind((launcher.ADDRESS, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(LaunchError, match=f"Port {port} is taken"):
            Server(host(STAND_IN), port=port).__enter__()


def test_comfyui_that_ends_at_once(host, tmp_path):
    server = Server(host("import sys; sys.exit('ModuleNotFoundError: No module named torch')"))
    with pytest.raises(LaunchError, match="ended while it started: ModuleNotFoundError"):
        server.__enter__()
    assert not server.base.exists()


def test_base_folder_that_is_kept(host, tmp_path):
    base, comfyui = tmp_path / "base", host(STAND_IN)
    for _ in range(2):  # the second time everything is there
        with Server(comfyui, base=base):
            pass
        assert (base / "models").is_dir()


def test_proxy_in_the_environment_is_not_for_this_machine(host):
    program = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("run", {str(RUN)!r})
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
launcher = run.room("headless.launcher")
launcher.has_accelerator = lambda: False
server = launcher.Server({str(host(STAND_IN))!r})
try:
    server.start(timeout_s=30)
finally:
    server.stop()
"""
    environment = {key: value for key, value in os.environ.items() if key.lower() != "no_proxy"}
    done = subprocess.run([sys.executable, "-c", program], env={**environment, "http_proxy": "http://127.0.0.1:9"},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize("name, status, line", [
    ("SIGINT", 130, "Stopped."), ("SIGTERM", 130, "Stopped."),
    pytest.param("SIGKILL", -9, "", marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tell"))])
def test_ended_from_outside_no_process_stays(host, tmp_path, name, status, line):
    """The demo, ended while it waits for its server: one line, a status that is not 0, nothing left running."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "COMFYUI_PATH": str(host(STAND_IN.replace('{"system": {}}', "{}"))),
                   "TMPDIR": str(temporary)}
    with subprocess.Popen([sys.executable, str(RUN), "demo", "--here", "--output", str(tmp_path / "out")],
                          env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        end = time.monotonic() + 60
        while not (found := list(temporary.glob("sanacog-*/pids"))) or not found[0].read_text():
            assert demo.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        pids = list(map(int, found[0].read_text().split()))
        demo.send_signal(getattr(signal, name))
        said = demo.communicate(timeout=60)[1]
    assert demo.returncode == status and said.strip() == line
    if name == "SIGKILL":  # nobody is left who could tidy up
        assert gone(pids[:1])
        os.kill(pids[1], signal.SIGKILL)
        return
    assert gone(pids) and list(temporary.iterdir()) == [] and list((tmp_path / "out").iterdir()) == []


def run(*arguments, **environment):
    return subprocess.run([sys.executable, str(RUN), *arguments], env={**os.environ, **environment},
                          capture_output=True, text=True, timeout=120)


def test_command_line(tmp_path):
    assert run().returncode == 0 and "run.py demo" in run("--help").stdout
    assert run("dmeo").returncode == 2
    assert run("demo", "--steps", "0").returncode == 2
    missing = run("demo", COMFYUI_PATH=str(tmp_path))
    assert missing.returncode == 1 and len(missing.stderr.strip().splitlines()) == 1
    assert "COMFYUI_PATH is" in missing.stderr
