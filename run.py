"""The one command for people: python run.py demo | test | serve | bench | train."""

import importlib.util
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
