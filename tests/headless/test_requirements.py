"""Each command starts in an environment that it alone made: what it imports is in the requirements files that it has
installed. Read from the source, so that it does not matter what else is installed where the test runs."""

import ast
import functools
import os
import sys
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sanacog.headless import installation
from sanacog.headless.hosts import HOSTS

from ..conftest import run
from ..unit.test_layers import ROOT, file_of, imports, target

# Distributions whose module is called otherwise.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "OpenGL": "pyopengl"}
# Nobody has to have these. Module: why it goes without.
OPTIONAL = {
    "triton": "kernels/: plain PyTorch computes where it is missing",
    "torch_directml": "ComfyUI: with --directml alone",
    "xformers": "ComfyUI: where it is installed",
    "comfyui_manager": "ComfyUI: with --enable-manager alone",
    "deepspeed": "training/: for parallel.deepspeed alone, and the message says how to get it",
    "gguf": "storage/: for GGUF files alone, and the message says how to get it",
}
# Need not be listed where another distribution is, which needs it. Module: that one.
BROUGHT_BY = {"pydantic_core": "pydantic", "gradio_client": "gradio", "packaging": "transformers", "typing_extensions": "torch"}
# Commands that import ComfyUI on some ways only. run.py prepares them for it when it is one of these.
SOMETIMES_WITH_COMFYUI = {"convert": "--text-encoder calibrates in ComfyUI"}
# Folders of ComfyUI that do not run when it does, beside hidden ones.
NOT_RUN = {"tests", "tests-unit", "script_examples"}


def requirements(file):
    lines = (line.partition("#")[0].strip() for line in Path(file).read_text("utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def listed(files):
    """Names of the distributions in requirements files."""
    return {canonicalize_name(requirement.name) for file in files for requirement in requirements(file)}


def belongs_to(module, comfyui):
    """Whether a module is the ComfyUI's own. It puts its folder comfy/ on the path, too."""
    return comfyui is not None and ((comfyui / module).is_dir() or (comfyui / f"{module}.py").is_file()
                                    or (comfyui / "comfy" / f"{module}.py").is_file())


def missing(found, files, comfyui):
    """What of {module: where it is imported} is neither ComfyUI's own nor in the requirements files."""
    names = listed(files)
    return {module: sorted(places) for module, places in found.items()
            if module not in OPTIONAL and not belongs_to(module, comfyui) and BROUGHT_BY.get(module) not in names
            and canonicalize_name(DISTRIBUTIONS.get(module, module)) not in names}


@functools.cache
def imports_of(path):
    return list(imports(path))


def reached(starts, with_comfyui, root=ROOT):
    """({our files}, {module of others: {"file:line", ...}}) of all imports from these files on, those in functions too.

    Without ComfyUI the files in host/ are reached and not read.
    """
    files, modules, todo = set(), {}, list(starts)
    while todo:
        path = todo.pop()
        if path in files:
            continue
        files.add(path)
        if not with_comfyui and "host" == path.relative_to(root).parts[0]:
            continue
        for line, level, name in imports_of(path):
            own = level > 0 or name.split(".")[0] == "sanacog"
            if own:
                parts = target(path, level, name, root) if level else tuple(name.split(".")[1:])
                if file := file_of(parts, root):
                    within = file.relative_to(root).parents
                    todo += [file, *(root / folder / "__init__.py" for folder in within if folder.name
                                     and (root / folder / "__init__.py").is_file())]
            elif (top := name.split(".")[0]) not in sys.stdlib_module_names and not file_of((top,), root):
                modules.setdefault(top, set()).add(f"{path.relative_to(root).as_posix()}:{line}")
    return files, modules


def prepared(comfyui, extras=()):
    """The requirements files that run.py installs for a command with this ComfyUI, or with None."""
    ours = comfyui and any(host.folder.exists() and comfyui.samefile(host.folder) for host in HOSTS.values())
    return installation.wanted(comfyui, (*extras, "host") if ours else extras).values()


def starts(name):
    files = [ROOT / "commands" / f"{name.replace('-', '_')}.py"]
    return files + sorted((ROOT / "tests").rglob("*.py")) if name == "test" else files


CASES = [(name, with_comfyui) for name, (_, needed) in run.COMMANDS.items()
         for with_comfyui in sorted({needed, needed or name in SOMETIMES_WITH_COMFYUI})]


@pytest.mark.parametrize("name, with_comfyui", CASES)
def test_a_command_finds_what_it_imports(comfyui_path, name, with_comfyui):
    comfyui = comfyui_path if with_comfyui else None
    pack = [ROOT / "__init__.py"] if with_comfyui else []  # ComfyUI loads all of it
    files, modules = reached([*starts(name), *pack], with_comfyui)
    assert missing(modules, prepared(comfyui, run.COMMANDS[name][0]), comfyui) == {}
    if not with_comfyui and name not in SOMETIMES_WITH_COMFYUI:
        assert not [file for file in files if file.is_relative_to(ROOT / "host")]


def test_every_command_is_a_file():
    """And every other file there is a part of one, and says so by its name."""
    files = {path.stem.replace("_", "-") for path in (ROOT / "commands").glob("*.py")} - {"--init--"}
    assert files >= set(run.COMMANDS)
    assert all(name.startswith(tuple(f"{command}-" for command in run.COMMANDS)) for name in files - set(run.COMMANDS))


def at_import(body, guarded=False):
    """(import, whether something is ready for its failure) of each import that runs when a file is imported."""
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, guarded
        elif isinstance(node, ast.Try):
            yield from at_import(node.body, True)
            for handler in node.handlers:
                yield from at_import(handler.body, True)
            yield from at_import(node.orelse, True)
            yield from at_import(node.finalbody, guarded)
        elif isinstance(node, (ast.If, ast.For, ast.While, ast.With, ast.ClassDef)):
            yield from at_import([*node.body, *getattr(node, "orelse", [])], guarded)


def needed_by_comfyui(comfyui):
    """{module: {file, ...}} of what the tree imports from others when its files are imported, failing without it."""
    found = {}
    for path in sorted(comfyui.rglob("*.py")):
        within = path.relative_to(comfyui)
        if within.parts[0] in NOT_RUN or within.parts[0].startswith("."):
            continue
        for node, guarded in at_import(ast.parse(path.read_text("utf-8")).body):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for top in {name.split(".")[0] for name in names}:
                beside = (path.parent / f"{top}.py").is_file()
                if not (guarded or getattr(node, "level", 0) or beside or top in sys.stdlib_module_names):
                    found.setdefault(top, set()).add(within.as_posix())
    return found


def test_comfyui_finds_what_it_imports(comfyui_path):
    found = needed_by_comfyui(comfyui_path)
    assert {"torch", "aiohttp", "PIL", "comfy"} <= set(found)
    assert missing(found, prepared(comfyui_path), comfyui_path) == {}


LISTS = sorted(ROOT.glob("requirements*.txt"))
PYTHONS = [(f"3.{minor}", platform) for minor in range(10, 15) for platform in ("linux", "darwin", "win32")]


@pytest.mark.parametrize("version", HOSTS)
@pytest.mark.parametrize("file", LISTS, ids=lambda file: file.name)
def test_everything_is_locked(file, version):
    """In one version that the list allows, on each Python and system that the lock is for."""
    check_locked(file, HOSTS[version].lock)


def test_hosts_are_locked():
    """Those that are unpacked here, the one that the tests run on among them."""
    there = [host for host in HOSTS.values() if host.folder.exists()]
    for host in there:
        check_locked(host.folder / "requirements.txt", host.lock)
    assert there or "COMFYUI_PATH" in os.environ


def check_locked(file, lock):
    locked = {}
    for pin in requirements(lock):
        locked.setdefault(canonicalize_name(pin.name), []).append(pin)
    for requirement in requirements(file):
        for python, platform in PYTHONS:
            there = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0",
                     "sys_platform": platform}
            if requirement.marker is None or requirement.marker.evaluate(there):
                pins = [pin for pin in locked.get(canonicalize_name(requirement.name), ())
                        if pin.marker is None or pin.marker.evaluate(there)]
                assert len(pins) == 1, f"{file.name}: {requirement} on {python}, {platform}: {len(pins)} lines in the lock"
                version = str(pins[0].specifier).removeprefix("==")
                assert requirement.specifier.contains(version), f"{file.name}: {requirement}, in the lock {version}"


# --- that the readers see what they are for ---


def test_imports_in_functions_count_and_host_does_not_without_comfyui(tmp_path):
    for name in ("commands", "host", "storage"):
        (tmp_path / name).mkdir()
    (tmp_path / "commands" / "__init__.py").write_text("import first\n")
    (tmp_path / "__init__.py").write_text("import never\n")
    command = tmp_path / "commands" / "one.py"
    command.write_text("import json, PIL.Image\ndef f():\n    from ..host import two\n    from ..storage import x\n")
    (tmp_path / "host" / "two.py").write_text("import comfy.sd, second\n")
    (tmp_path / "storage" / "__init__.py").write_text("from sanacog.commands import one\nimport third\n")
    assert set(reached([command], True, tmp_path)[1]) == {"PIL", "comfy", "second", "third", "first"}
    assert set(reached([command], False, tmp_path)[1]) == {"PIL", "third", "first"}


def test_a_name_that_is_not_listed_is_missing(tmp_path):
    (tmp_path / "list.txt").write_text("# comment\nPillow>=9  # pictures\nrequests; python_version < '4'\n")
    (tmp_path / "folder_paths.py").write_text("")
    found = {"PIL": {"a"}, "triton": {"a"}, "tqdm": {"b", "a"}, "folder_paths": {"a"}}
    assert missing(found, [tmp_path / "list.txt"], tmp_path) == {"tqdm": ["a", "b"]}
    assert set(missing(found, [tmp_path / "list.txt"], None)) == {"tqdm", "folder_paths"}


def test_guarded_imports_of_comfyui_are_let_be(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "x.py").write_text("import other\n")
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "main.py").write_text(
        "import os, one.two, beside\ntry:\n    import three\nexcept ImportError:\n    pass\n"
        "if os:\n    from four import x\ndef f():\n    import five\nclass C:\n    import six\nfrom . import seven\n")
    assert set(needed_by_comfyui(tmp_path)) == {"one", "four", "six"}
