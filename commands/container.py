"""python run.py container: what the image of docker/Dockerfile starts, a ComfyUI on port 8188 for other machines too.

/data has its models/, input/, output/, user/ and custom_nodes/. From the environment: SANACOG_ARGS, more arguments for ComfyUI's
main.py; SANACOG_REQUIRE_GPU=1, to end with the reason where no GPU can be used, instead of computing on the CPU.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from ..headless import installation, launcher

BASE = Path("/data")
PORT = 8188
YES = ("1", "true", "yes", "on")


def main(arguments):
    """Run until ComfyUI ends or a signal comes; returns the exit status. Raises SetupError, LaunchError."""
    try:
        more = shlex.split(os.environ.get("SANACOG_ARGS", ""))
    except ValueError as error:
        raise launcher.LaunchError(f"SANACOG_ARGS cannot be read ({error}): {os.environ['SANACOG_ARGS']}") from None
    more += arguments
    if "--cpu" not in more and (missing := missing_for_a_gpu()):
        if os.environ.get("SANACOG_REQUIRE_GPU", "").lower() in YES:
            raise launcher.LaunchError(f"No GPU: {missing}")
        print(f"No GPU, it computes on the CPU: {missing}", flush=True)
    try:
        base = launcher.make_base(BASE)
        launcher.give_inputs(base)
    except PermissionError as error:
        raise launcher.LaunchError(f"User {os.getuid()} may not write to {error.filename}; give the mounted folder to that user "
                                   "(chown), or start with --user and the number of the folder's owner.") from None
    host = installation.host()
    try:
        with launcher.Server(host, base, PORT, ["--listen", "0.0.0.0", "--preview-method", "auto", *more],
                             log="terminal") as server:
            print(f"ComfyUI answers on port {PORT}.", flush=True)
            return server.process.wait()
    except KeyboardInterrupt:
        return 0


def missing_for_a_gpu():
    """In one line why PyTorch cannot use a GPU; nothing when it can."""
    if launcher.has_accelerator():
        return ""
    status = launcher.driver_status()
    if status is None:
        return ("no NVIDIA driver in the container; install the NVIDIA container toolkit on the machine and start with "
                "--gpus all.")
    if status:
        return f"the NVIDIA driver does not start (cuInit: {status}); is there a GPU free for this container?"
    tried = subprocess.run([sys.executable, "-c", "import torch; torch.cuda.init()"], stderr=subprocess.PIPE, text=True)
    return (tried.stderr.strip().splitlines() or ["PyTorch gives no reason."])[-1]
