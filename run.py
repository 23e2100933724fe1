"""The one command for people:

python run.py demo       four pictures and three videos with the embedded models, no window   (demo --help: options)
python run.py serve      ComfyUI in the browser with this pack in it   (more arguments go to ComfyUI's main.py)
python run.py app        a web page that draws, with ComfyUI behind it   (app --help: address, password, a Space)
python run.py test       the whole test suite   (more arguments go to pytest; --slow: the slow tests too)
python run.py bench      the figures in bench/results   (bench --help)
python run.py evaluate   how well a model draws: prompts obeyed, CLIP score, FID, motion   (evaluate --help)
python run.py dataset    look through pictures or clips to train on: faults, captions, sizes   (dataset --help)
python run.py train      train a LoRA, all weights or a ControlNet on files of yours   (train --help)
python run.py demo-train the same in a few minutes on a CPU: drawn pictures, a LoRA of the embedded Sana, what it does
python run.py convert    a model's file in another layout or number type, or quantised   (convert --help)
python run.py hub        models from the Hugging Face Hub to where the loaders look, and yours to the Hub   (hub --help)

The first run makes what is missing: a Python environment in .venv/ and, unless COMFYUI_PATH names a ComfyUI or the pack
lies in the custom_nodes/ of one, a ComfyUI in .host/. --host 0.3.75 (or COMFYUI_VERSION) takes another than the newest that can
be had, in an environment of its own; `test --host all` runs on each. With --here a command runs in the Python that was called,
which then has to have what the command imports. Standard library only.
"""

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def import_pack():
    """Make this folder importable as the package `sanacog`, whatever the folder is called; returns the package."""
    if "sanacog" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "sanacog", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
        package = importlib.util.module_from_spec(spec)
        sys.modules["sanacog"] = package
        spec.loader.exec_module(package)
    return sys.modules["sanacog"]


def room(name):
    import_pack()
    return importlib.import_module(f"sanacog.{name}")


# {name, which is also its file's in commands/: (names of requirements files, whether it needs ComfyUI)}
COMMANDS = {
    "demo": ((), True),
    "serve": ((), True),
    "app": (("app",), True),
    "test": (("dev", "train", "hub", "app"), True),
    "bench": (("dev",), True),
    "evaluate": ((), True),
    "dataset": (("train",), False),
    "train": (("train",), False),
    "demo-train": (("train",), False),
    "convert": (("train",), False),
    "hub": (("hub",), False),
    "container": (("app",), True),  # what docker/Dockerfile starts; the page is in the image too
    "help-pictures": (("dev",), True),  # for us: the pictures in web/docs
    "thumbnails": (("dev",), True),  # for us: those beside the names of the workflows
    "screenshots": (("dev", "app"), True),  # for us: those of the canvas and of the page in docs
}


def command(name):
    return room(f"commands.{name.replace('-', '_')}")


# --- from the Python that was called to the environment's ---


def rerun(python, arguments):
    """Run this file once more with another Python; returns its exit status."""
    command = [str(python), str(ROOT / "run.py"), *arguments]
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        os.execv(command[0], command)  # signals then have one process to reach
    with subprocess.Popen(command) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # it reaches the other process too, which ends itself
                continue


def taken(arguments, option):
    """The option's value, taken out of the arguments with it; None when it is not there, or when nothing follows it."""
    if option not in arguments[:-1]:
        return None
    at = arguments.index(option)
    value = arguments[at + 1]
    del arguments[at:at + 2]
    return value


def on_every_host(arguments):
    """`test` on one host after the other, whatever comes of the ones before; the exit status is 1 when one failed."""
    status = {}
    for version in room("headless.hosts").HOSTS:
        print(f"\nComfyUI {version}", flush=True)
        status[version] = subprocess.run([sys.executable, str(ROOT / "run.py"), "test", "--host", version, *arguments]).returncode
    print("\n" + "\n".join(f"ComfyUI {version}: {'failed' if code else 'passed'}" for version, code in status.items()))
    return int(any(status.values()))


def main(arguments):
    if not arguments or arguments[0] not in COMMANDS:
        print(__doc__.strip())
        return 0 if arguments[:1] in ([], ["-h"], ["--help"]) else 2
    name, rest = arguments[0], arguments[1:]
    if "dev" in COMMANDS[name][0] and not (ROOT / "tests").is_dir():
        print(f"`{name}` is for those who work on the pack: it needs a clone of the repository.", file=sys.stderr)
        return 2
    extras, needs_host = COMMANDS[name]
    needs_host |= name == "convert" and any(option.startswith("--text") for option in rest)  # it calibrates in ComfyUI
    # The pack is a package; with its folder on the path, ComfyUI's module `nodes` would be looked for in nodes/.
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != ROOT]
    if version := taken(rest, "--host"):
        if version == "all" and name == "test":
            return on_every_host(rest)
        os.environ["COMFYUI_VERSION"] = version
        os.environ.pop("COMFYUI_PATH", None)
    if "--here" in rest:
        rest.remove("--here")
        return command(name).main(rest)
    if name in ("demo", "app"):
        command(name).parser().parse_args(rest)  # a mistyped option shows before minutes of setting up
    python, _ = room("headless.installation").prepare(extras, needs_host)
    return rerun(python, [name, "--here", *rest])


def interrupt(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    for signal_name in ("SIGTERM", "SIGHUP"):  # end as on Ctrl-C, with what was started
        if hasattr(signal, signal_name):
            signal.signal(getattr(signal, signal_name), interrupt)
    client = room("headless.client")
    expected = (room("headless.installation").SetupError, room("headless.launcher").LaunchError, client.Refused,
                client.Failed, OSError)
    try:
        status = main(sys.argv[1:])
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        status = 130
    except expected as error:
        print(f"\n{error}", file=sys.stderr)
        status = 1
    sys.exit(status)
