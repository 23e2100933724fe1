"""Imports go down: commands, nodes, host, cores, kernels; between the wings of host/ there are none, and no files import each
other in a circle. Read from the source, so that it also holds for code no test runs."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CORES = {"sana_core", "cogvideo_core", "kernels", "storage"}
WINGS = {"host/sana", "host/cogvideox", "host/sana_video"}
# What a room may import of ours, itself included. A wing is a room of its own within host/.
ALLOWED = {
    "kernels": {"kernels"},
    "storage": {"storage"},
    "evaluation": {"evaluation"},
    "sana_core": {"sana_core", "kernels"},
    "cogvideo_core": {"cogvideo_core", "kernels"},
    "host/sana": {"host/sana", "host", "sana_core", "kernels", "storage"},
    "host/sana_video": {"host/sana_video", "host", "sana_core", "kernels", "storage"},
    "host/cogvideox": {"host/cogvideox", "host", "cogvideo_core", "kernels", "storage"},
    "host": {"host", *WINGS, *CORES, "evaluation"},
    "nodes": {"nodes", "host", *WINGS},
    "headless": {"headless"},
    "app": {"app", "headless"},
    "training": {"training", *CORES, "evaluation"},
    "hub": {"hub", "training", *CORES},
    "bench": {"bench", "evaluation", "training", "headless", "host", *WINGS, *CORES},
    "commands": {"commands", "app", "bench", "evaluation", "hub", "training", "headless", "host", *WINGS, *CORES},
}
OURS = {room.split("/")[0] for room in ALLOWED} | {"tests", "run", "models", "workflows"}
WITH_HOST = {"host", *WINGS, "nodes", "bench", "commands"}
HOST_MODULES = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview", "nodes",
                "server"}


def room_of(parts):
    """The room of a module or file, by the parts of its path below the root."""
    within = "/".join(parts[:2])
    return within if within in ALLOWED else parts[0].removesuffix(".py")


def imports(path):
    """(line, level, dotted name) of every import in a file, inside functions too; `from . import a` gives "a", and so does
    `importlib.import_module(".a", __package__)`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dotted = f"{node.module}." if node.module else ""
            yield from ((node.lineno, node.level, dotted + alias.name) for alias in node.names)
        elif (isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module"
              and isinstance(node.args[0], ast.Constant) and node.args[0].value.startswith(".")):
            yield node.lineno, 1, node.args[0].value[1:]


def target(path, level, name, root=ROOT):
    """The parts, below the root, of what a relative import lands on."""
    package = path.parent.relative_to(root).parts
    return (*package[: len(package) - (level - 1)], *name.split("."))


def file_of(parts, root=ROOT):
    """The file that an import lands on: a name in a module is the module's, a name in a package the package's."""
    for end in (len(parts), len(parts) - 1):
        place = root.joinpath(*parts[:end])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if end and file.is_file():
                return file
    return None


def circles(files, root=ROOT):
    """The sets of files that import each other, each two or more."""
    below = {path: {file_of(target(path, level, name, root), root) for _, level, name in imports(path) if level} - {path, None}
             for path in files}

    def reached(start):
        seen, todo = set(), list(below.get(start, ()))
        while todo:
            if (path := todo.pop()) not in seen:
                seen.add(path)
                todo += below.get(path, ())
        return seen

    everything = {path: reached(path) for path in files}
    return {frozenset(other for other in everything[path] if path in everything.get(other, ())) for path in files
            if path in everything[path]}


def sources():
    for top in sorted({room.split("/")[0] for room in ALLOWED}):
        yield from sorted((ROOT / top).rglob("*.py")) if (ROOT / top).is_dir() else [ROOT / f"{top}.py"]


FILES = [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in sources()]


def test_every_room_is_there():
    rooms = {room_of(path.relative_to(ROOT).parts) for path in sources()}
    assert rooms == set(ALLOWED)


@pytest.mark.parametrize("path", FILES)
def test_imports_go_down(path):
    room = room_of(path.relative_to(ROOT).parts)
    for line, level, name in imports(path):
        if level:
            assert room_of(target(path, level, name)) in ALLOWED[room], f"{path.name}:{line}: {room} imports {name}"


@pytest.mark.parametrize("path", FILES)
def test_own_imports_are_relative_and_cores_know_no_host(path):
    """Under ComfyUI the pack has another name, and `nodes` is ComfyUI's own module."""
    room = room_of(path.relative_to(ROOT).parts)
    for line, level, name in imports(path):
        top = name.split(".")[0]
        if level == 0:
            ours = top == "sanacog" or top in OURS and top not in HOST_MODULES
            script = room == "bench" and top in ("run", "sanacog")  # a file that is started by itself, too
            assert script or not ours, f"{path.name}:{line}: import {name}"
            assert room in WITH_HOST or top not in HOST_MODULES, f"{path.name}:{line}: {room} imports {name}"


def test_no_files_import_each_other():
    assert not circles(list(sources()))


def test_the_rules_see_what_they_are_for(tmp_path):
    for name in ("sana_core", "host/sana", "kernels/fused"):
        (tmp_path / name).mkdir(parents=True)
    up = tmp_path / "sana_core" / "x.py"
    up.write_text("def f():\n    from ..host.sana import model\n")
    assert list(imports(up)) == [(2, 2, "host.sana.model")]
    assert room_of(target(up, 2, "host.sana.model", tmp_path)) == "host/sana" not in ALLOWED["sana_core"]
    assert room_of(target(up, 1, "config", tmp_path)) == "sana_core"
    assert room_of(("host", "blocks")) == "host" and room_of(("storage", "pickles.py")) == "storage"
    wing = tmp_path / "host" / "sana" / "x.py"
    assert room_of(target(wing, 2, "cogvideox.model", tmp_path)) == "host/cogvideox" not in ALLOWED["host/sana"]

    one, two, three = (tmp_path / "kernels" / name for name in ("one.py", "fused/__init__.py", "fused/two.py"))
    one.write_text("import importlib\ndef f():\n    importlib.import_module('.fused', __package__)\n")
    two.write_text("from . import two\n")
    three.write_text("from ..one import f\n")
    assert circles([one, two, three, up], tmp_path) == {frozenset({one, two, three})}
