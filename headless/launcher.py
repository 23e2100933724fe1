"""A ComfyUI process with this pack in it: its folders, start, wait and end. Standard library only.

The host's own tree is never written to: a base folder elsewhere holds models/, input/, output/, user/ and
custom_nodes/ with a link to this pack; the database is in memory; Python writes no bytecode.
"""

import ctypes
import filecmp
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACK_NAME = "ComfyUI-SanaCog"
ADDRESS = "127.0.0.1"

# A proxy in the environment is for the world outside, not for this machine.
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class LaunchError(Exception):
    """Why ComfyUI does not run, as one line for the person at the terminal."""


def make_base(base):
    """Lay out a base folder for ComfyUI, with the pack linked in; an existing one is completed."""
    base = Path(base)
    for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / PACK_NAME
    unlink_pack(base)
    if os.name == "nt":
        import _winapi  # a junction, unlike a symbolic link, needs no right of an administrator
        _winapi.CreateJunction(str(ROOT), str(link))
    else:
        link.symlink_to(ROOT, target_is_directory=True)
    return base


def give_inputs(base):
    """Copy what the shipped workflows load, pictures, videos and folders to train on, into a base folder's input/."""
    for folder in (ROOT / "workflows" / "input", ROOT / "workflows" / "datasets"):
        for source in (path for path in folder.rglob("*") if path.is_file()):
            target = Path(base, "input", source.relative_to(folder))
            # The folder may be another user's, who lets everybody write in it: it is not touched itself.
            if not (target.exists() and filecmp.cmp(source, target, shallow=False)):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


def unlink_pack(base):
    link = Path(base) / "custom_nodes" / PACK_NAME
    if os.path.lexists(link):
        os.rmdir(link) if os.name == "nt" else link.unlink()


def remove_base(base):
    """Delete a base folder; the pack that it links to stays."""
    unlink_pack(base)
    shutil.rmtree(base, ignore_errors=True)


def is_free(port):
    with socket.socket() as probe:
        if os.name != "nt":  # so that a port whose last user has just gone counts as free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError:
            return False
    return True


def free_port():
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


def has_accelerator():
    """Whether ComfyUI finds a GPU that this PyTorch can use; PyTorch is only asked where there is a sign of one."""
    if not (driver_status() == 0 or Path("/dev/kfd").exists()
            or (sys.platform == "darwin" and platform.machine() == "arm64")):
        return False
    question = "import torch; print(torch.cuda.is_available() or torch.backends.mps.is_available())"
    answer = subprocess.run([sys.executable, "-c", question], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return answer.stdout.strip() == b"True"


def driver_status():
    """What NVIDIA's driver says to its start, 0 for ready; None where there is none."""
    try:
        return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1").cuInit(0)
    except OSError:
        return None


class Server:
    """One ComfyUI process, run with the Python that runs this. Use as a context manager: leaving it ends the process.

    host: ComfyUI's folder. base: its base folder, kept; None for a temporary one, deleted at the end.
    port: None for any free one. arguments: more for ComfyUI's command line. log: file for what ComfyUI prints;
    None for `comfyui.log` in the base folder, "terminal" to let it through.
    """

    def __init__(self, host, base=None, port=None, arguments=(), log=None):
        self.host = Path(host)
        self.port = port or free_port()
        self.url = f"http://{ADDRESS}:{self.port}"
        self.keep = base is not None
        self.base = make_base(base if self.keep else tempfile.mkdtemp(prefix="sanacog-"))
        self.log = log or self.base / "comfyui.log"
        self.arguments = list(arguments)
        self.process = None

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error):
        self.stop()

    def start(self, timeout_s=600):
        """Start and wait until ComfyUI answers. Raises LaunchError with its last words when it ends instead."""
        if not is_free(self.port):
            raise LaunchError(f"Port {self.port} is taken by another program; name another one with --port.")
        command = [sys.executable, str(self.host / "main.py"), "--port", str(self.port), "--disable-auto-launch",
                   "--base-directory", str(self.base), "--database-url", "sqlite:///:memory:", *self.arguments]
        if "--cpu" not in command and not has_accelerator():
            command.append("--cpu")
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
        output = None if self.log == "terminal" else open(self.log, "wb")
        try:
            self.process = subprocess.Popen(command, cwd=self.base, env=environment, stdin=subprocess.DEVNULL,
                                            stdout=output, stderr=output and subprocess.STDOUT, **own_group())
        finally:
            if output:
                output.close()
        end = time.monotonic() + timeout_s
        while not self.answers():
            if self.process.poll() is not None:
                raise LaunchError(f"ComfyUI ended while it started: {self.last_words()}")
            if time.monotonic() > end:
                raise LaunchError(f"ComfyUI did not answer within {timeout_s} s: {self.last_words()}")
            time.sleep(0.1)

    def answers(self):
        try:
            with opener.open(f"{self.url}/system_stats", timeout=10) as reply:
                return "system" in json.load(reply)
        except (OSError, ValueError):
            return False

    def read_log(self):
        return "" if self.log == "terminal" else Path(self.log).read_text("utf-8", errors="replace")

    def last_words(self):
        lines = [line for line in self.read_log().splitlines() if line.strip()]
        return lines[-1].strip() if lines else "it said nothing."

    def stop(self):
        """End the process with all its children and delete a temporary base folder. May be called twice."""
        process, self.process = self.process, None
        if process and process.poll() is None:
            end_group(process, force=False)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                end_group(process, force=True)
                process.wait()
        if not self.keep:
            remove_base(self.base)


def own_group():
    """Arguments of Popen for a process group of its own: a Ctrl-C at the terminal reaches the caller alone, who then
    ends all of the group. On Linux the process also ends when its caller is killed without a chance to do so."""
    if os.name == "nt":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    arguments = {"start_new_session": True}
    if sys.platform == "linux":
        prctl, set_parent_death_signal = ctypes.CDLL(None).prctl, 1
        arguments["preexec_fn"] = lambda: prctl(set_parent_death_signal, signal.SIGTERM)
    return arguments


def end_group(process, force):
    if os.name == "nt":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        return
    try:
        os.killpg(process.pid, signal.SIGKILL if force else signal.SIGTERM)
    except ProcessLookupError:
        pass
