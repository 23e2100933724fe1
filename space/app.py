"""What a Hugging Face Space starts: it fetches ComfyUI where there is none yet, and becomes `run.py app` at the Space's port."""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main():
    spec = importlib.util.spec_from_file_location("run", ROOT / "run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    run.room("headless.installation").fetch(run.room("headless.hosts").chosen(), sys.executable)
    address = ["--listen", os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"), "--port", os.environ.get("GRADIO_SERVER_PORT", "7860")]
    os.execv(sys.executable, [sys.executable, str(ROOT / "run.py"), "app", "--here", *address])


if __name__ == "__main__":
    main()
