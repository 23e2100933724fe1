"""What every test needs: the pack as the package `sanacog`, and nothing of its folder on the import path."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# With the root on the path, `import nodes` would find the pack's folder nodes/ instead of ComfyUI's nodes.py.
sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != ROOT]

spec = importlib.util.spec_from_file_location("sanacog_run", ROOT / "run.py")
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
run.import_pack()
