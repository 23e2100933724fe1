"""deploy/ray_serve.py with two ComfyUIs on the CPU, from the command line to the picture: each takes a prompt, one is
killed, a caller hangs up, and the end leaves nothing running. One ComfyUI takes ten seconds to start: all in one go."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from sanacog.headless.launcher import ADDRESS, free_port

from ..headless.test_launcher import gone

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "ray_serve.py"
WORKFLOW = SCRIPT.parents[1] / "workflows" / "api" / "sana_quickstart.json"


def quickstart(seed, steps):
    prompt = json.loads(WORKFLOW.read_text("utf-8"))
    prompt["7"]["inputs"] |= {"seed": seed, "steps": steps}
    prompt["6"]["inputs"] |= {"width": 128, "height": 128}
    return prompt


def descendants(pid):
    """Processes below one, at any depth."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            pass  # it has just ended
    found, todo = set(), [pid]
    while todo:
        below = {child for child, parent in parents.items() if parent == todo[-1]}
        todo.pop()
        todo += below
        found |= below
    return found


def comfyuis(pid):
    """{process id: port} of the ComfyUIs below a process."""
    found = {}
    for child in descendants(pid):
        words = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        if any(word.endswith("main.py") for word in words):
            found[child] = words[words.index("--port") + 1]
    return found


def ask(url, body=None, timeout=200):
    """(status, bytes)"""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode() if body else None),
                                    timeout=timeout) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def until(condition, seconds=100):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "this does not happen"
        time.sleep(0.1)
    return found


def at_work(pid):
    """Process ids of the ComfyUIs that run a prompt."""
    return [child for child, port in comfyuis(pid).items()
            if json.loads(ask(f"http://{ADDRESS}:{port}/queue")[1])["queue_running"]]


@pytest.fixture
def front(comfyui_path, tmp_path):
    """(process, address of a running ray_serve.py)"""
    temporary = tempfile.mkdtemp(prefix="ray-")  # Ray's sockets need short paths
    url = f"http://{ADDRESS}:{free_port()}"
    command = [sys.executable, str(SCRIPT), "--cpu", "--replicas", "2", "--base", str(tmp_path / "base"), "--output",
               str(tmp_path / "output"), "--port", url.rpartition(":")[2]]
    environment = {**os.environ, "COMFYUI_PATH": str(comfyui_path), "RAY_TMPDIR": temporary, "OMP_NUM_THREADS": "1",
                   "TMPDIR": temporary}
    with open(tmp_path / "log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process:
        try:
            until(lambda: '"replicas": 2' in (tmp_path / "log").read_text() or process.poll() is not None, 200)
            assert process.poll() is None, (tmp_path / "log").read_text()
            yield process, url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            shutil.rmtree(temporary)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_comfyuis(front):
    process, url = front
    first = comfyuis(process.pid)
    assert len(first) == 2
    with ThreadPoolExecutor() as aside:
        # Two prompts at once run on two of them.
        both = [aside.submit(ask, f"{url}/prompt", {"prompt": quickstart(seed, 30)}) for seed in (1, 2)]
        answers = [json.loads(one.result()[1]) for one in both]
        assert len({answer["replica"] for answer in answers}) == 2
        for answer in answers:
            shown, = answer["files"]
            assert Image.open(BytesIO(ask(url + shown["url"])[1])).size == (128, 128)
        assert json.loads(ask(f"{url}/status")[1]) == {"replicas": {"RUNNING": 2}, "prompts": 0}

        # One is killed at work: the prompt comes back from the other, and there are two again.
        running = aside.submit(ask, f"{url}/prompt", {"prompt": quickstart(3, 200)})
        killed, = until(lambda: at_work(process.pid))
        os.kill(killed, signal.SIGKILL)
        status, answer = running.result()
        assert status == 200 and len(json.loads(answer)["files"]) == 1
        until(lambda: len(comfyuis(process.pid)) == 2
              and json.loads(ask(f"{url}/status")[1])["replicas"] == {"RUNNING": 2})
        assert len(set(comfyuis(process.pid)) & set(first)) == 1

    # What cannot be run is said, and so is what is not there.
    assert ask(f"{url}/prompt", {"prompt": {"1": {"class_type": "NoSuchNode", "inputs": {}}}})[0] == 400
    assert ask(f"{url}/prompt", [1])[0] == 400
    wrong = quickstart(4, 1)
    wrong["6"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}}
    wrong["8"]["inputs"]["samples"] = ["6", 0]  # not of this autoencoder
    status, answer = ask(f"{url}/prompt", {"prompt": wrong})
    assert status == 500 and json.loads(answer)["error"].startswith("VAEDecode: ")
    assert ask(f"{url}/file/..%2f..%2fbase%2fmodels")[0] == 404

    # A caller that hangs up stops its prompt.
    with pytest.raises(TimeoutError):
        ask(f"{url}/prompt", {"prompt": quickstart(5, 10_000)}, timeout=3)
    until(lambda: not at_work(process.pid), 60)  # all steps take minutes
    assert json.loads(ask(f"{url}/status")[1])["prompts"] == 0

    processes = descendants(process.pid)
    assert len(processes) > 5
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130 and gone(processes)


def said(comfyui_path, tmp_path, *arguments):
    """What the command prints at its end, which has to come by itself."""
    environment = {**os.environ, "COMFYUI_PATH": str(comfyui_path), "RAY_TMPDIR": "/tmp"}
    command = [sys.executable, str(SCRIPT), "--cpu", "--base", str(tmp_path), "--output", str(tmp_path), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_comfyui_that_does_not_start(comfyui_path, tmp_path):
    last = said(comfyui_path, tmp_path, "--port", str(free_port()), "--no-such-option")
    assert last.startswith("ComfyUI does not start: ") and "--no-such-option" in last


def test_what_is_wrong_before_anything_starts(comfyui_path, tmp_path):
    with socket.create_server((ADDRESS, 0)) as other:
        port = other.getsockname()[1]
        assert said(comfyui_path, tmp_path, "--port", str(port)).startswith(f"Port {port} is taken")
    assert said(tmp_path, tmp_path).startswith(f"COMFYUI_PATH is {tmp_path}")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("ray_serve", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("replicas, gpus, cpu, there, expected", [
    (None, 1, False, 0, (1, 0)), (None, 1, False, 4, (4, 1)), (None, 2, False, 4, (2, 2)), (3, 0.5, False, 2, (3, 0.5)),
    (2, 1, True, 4, (2, 0)), (2, 1, False, 0, (2, 0))])
def test_share_of_the_gpus(script, replicas, gpus, cpu, there, expected):
    assert script.share(Namespace(replicas=replicas, gpus=gpus, cpu=cpu), there) == expected


def test_more_gpus_than_there_are(script):
    with pytest.raises(ValueError, match="3 ComfyUIs with 1 GPUs each: there are 2. Take fewer --replicas"):
        script.share(Namespace(replicas=3, gpus=1, cpu=False), 2)
