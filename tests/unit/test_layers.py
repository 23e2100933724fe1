"""Imports go down: nodes, host, cores, kernels. Read from the source, so that it also holds for code no test runs."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What a floor may import of ours, itself included. Single files at the root count as floors of their own.
ALLOWED = {
    "kernels": {"kernels"},
    "sana_core": {"sana_core", "kernels"},
    "cogvideo_core": {"cogvideo_core", "kernels"},
    "storage": {"storage"},
    "host": {"host", "sana_core", "cogvideo_core", "kernels", "storage"},
    "nodes": {"nodes", "host"},
    "client": {"client"},
    "convert": {"sana_core", "cogvideo_core", "kernels", "storage", "host", "installation"},  # host: when it calibrates
}
OURS = set(ALLOWED) | {"training", "bench", "tests", "run", "models", "workflows"}
WITHOUT_HOST = {"kernels", "sana_core", "cogvideo_core", "storage", "client", "convert", "training"}
HOST_MODULES = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview", "nodes",
                "server"}


def sources():
    for floor in [*ALLOWED, "training"]:
        yield from ((floor, path) for path in sorted((ROOT / floor).rglob("*.py")))
        if (ROOT / f"{floor}.py").exists():
            yield floor, ROOT / f"{floor}.py"


def imports(path):
    """(line, level, dotted name) of every import in a file, inside functions too; `from . import a` gives "a"."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from ((node.lineno, node.level, name) for name in names)


def floor_of(path, level, name):
    """The floor that a relative import lands on."""
    package = path.parent.relative_to(ROOT).parts
    return (*package[: len(package) - (level - 1)], *name.split("."))[0]


FILES = [pytest.param(floor, path, id=str(path.relative_to(ROOT))) for floor, path in sources()]


@pytest.mark.parametrize("floor, path", FILES)
def test_imports_go_down(floor, path):
    for line, level, name in imports(path):
        if level:
            target = floor_of(path, level, name)
            allowed = ALLOWED.get(floor, OURS)
            assert target in allowed, f"{path.name}:{line}: {floor}/ imports {target}/"


@pytest.mark.parametrize("floor, path", FILES)
def test_own_imports_are_relative_and_cores_know_no_host(floor, path):
    """Under ComfyUI the pack has another name, and `nodes` is ComfyUI's own module."""
    for line, level, name in imports(path):
        top = name.split(".")[0]
        if level == 0:
            assert top != "sanacog" and (top not in OURS or top in HOST_MODULES), f"{path.name}:{line}: import {name}"
            assert floor not in WITHOUT_HOST or top not in HOST_MODULES, f"{path.name}:{line}: {floor}/ imports {name}"


def test_the_rule_sees_an_arrow_that_runs_up(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from ..host.sana import SanaModel\n")
    assert list(imports(file)) == [(2, 2, "host.sana")]
    assert floor_of(ROOT / "sana_core" / "x.py", 2, "host.sana") == "host" not in ALLOWED["sana_core"]
    assert floor_of(ROOT / "sana_core" / "x.py", 1, "config") == "sana_core"
    assert floor_of(ROOT / "training" / "sub" / "x.py", 3, "kernels.glumbconv") == "kernels"
