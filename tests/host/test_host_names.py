"""Every name of ComfyUI's that host/ and nodes/ use exists in the ComfyUI at hand. Read from the source on both sides, so that
it also holds for code that no test runs."""

import ast
import builtins
from pathlib import Path

import pytest

from ..unit.test_layers import ROOT

OURS = [ROOT / "__init__.py", *sorted((ROOT / "host").rglob("*.py")), *sorted((ROOT / "nodes").rglob("*.py"))]
THEIRS = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "latent_preview", "node_helpers",
          "comfyui_version"}


def file_of(host, module):
    """The file of a module of the host's, or the folder of a package that has none; None where there is neither."""
    place = host.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py", place) if file.exists()), None)


def names_in(host, module):
    """The names that a module has: what its file binds at any depth outside functions, and the modules in its folder."""
    file = file_of(host, module)
    if file.is_dir():
        return {path.stem for path in file.iterdir()}
    found = {path.stem for path in file.parent.iterdir()} if file.name == "__init__.py" else set()

    def bound(body):
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                for alias in node.names:
                    if alias.name == "*":
                        found.update(names_in(host, star(module, node, file)))
                    found.add((alias.asname or alias.name).split(".")[0])
            else:
                found.update(leaf.id for leaf in ast.walk(node) if isinstance(leaf, ast.Name) and isinstance(leaf.ctx, ast.Store))
                for part in ("body", "orelse", "finalbody"):
                    bound(getattr(node, part, []))
                for handler in getattr(node, "handlers", []):
                    bound(handler.body)

    bound(ast.parse(file.read_text("utf-8")).body)
    return found


def star(module, node, file):
    """The module that `from x import *` takes from."""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    base = package[: len(package) - node.level + 1] if node.level else []
    return ".".join([*base, *(node.module or "").split(".")]).strip(".")


def uses(path):
    """(line, module, name) of what a file of ours takes from the host; name None: the module itself. What it asks for with
    hasattr, getattr or accepts, or takes in a try or behind such a question, is left out."""
    tree = ast.parse(path.read_text("utf-8"))

    def questions(within):
        return [node for node in ast.walk(within) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
                and node.func.id in ("hasattr", "getattr", "accepts")]

    asked = {leaf.value for node in questions(tree) for leaf in ast.walk(node)
             if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)}
    tried = {id(leaf) for node in ast.walk(tree)
             if isinstance(node, ast.Try) or isinstance(node, ast.If) and questions(node.test)
             for part in node.body for leaf in ast.walk(part)}
    modules = {}  # what a local name stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in THEIRS and id(node) not in tried:
                    modules[alias.asname or alias.name.split(".")[0]] = alias.name if alias.asname else alias.name.split(".")[0]
                    yield node.lineno, alias.name, None
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in THEIRS and id(node) not in tried:
            for alias in node.names:
                if alias.name not in asked:
                    modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                    yield node.lineno, node.module, alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in tried and node.attr not in asked:
            chain, inner = [node.attr], node.value
            while isinstance(inner, ast.Attribute):
                chain.insert(0, inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name) and inner.id in modules:
                yield node.lineno, ".".join([modules[inner.id], *chain[:-1]]), chain[-1]


def missing(host, found):
    """Of (line, module, name)s those that the host lacks."""
    lacking = []
    for line, module, name in found:
        if file_of(host, module) is None:
            # An attribute of a class or of a value, whose home was looked at by itself; or no module.
            if name is None or "." not in module:
                lacking.append((line, module, name))
        elif name is not None and name not in names_in(host, module) | set(dir(builtins)) | {"__version__", "__file__"}:
            lacking.append((line, module, name))
    return lacking


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_exist(comfyui_path, path):
    assert missing(comfyui_path, uses(path)) == []


def test_names_that_are_missing_are_seen(tmp_path):
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfy" / "__init__.py").write_text("")
    (tmp_path / "comfy" / "sd.py").write_text("import torch\nclass VAE:\n    size = 1\nif torch:\n    def load(): pass\n")
    ours = tmp_path / "ours.py"
    ours.write_text("import comfy.sd\nimport comfy.gone\nfrom comfy import sd\nfrom comfy.sd import VAE, Lost\n"
                    "comfy.sd.load(comfy.sd.VAE.size)\nsd.forgotten()\nif hasattr(sd, 'asked'):\n    sd.asked()\n")
    assert missing(tmp_path, uses(ours)) == [(2, "comfy.gone", None), (4, "comfy.sd", "Lost"), (6, "comfy.sd", "forgotten")]
