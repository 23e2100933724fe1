"""`run.py hub` in this process, and files to try it on."""

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from sanacog.commands import hub as command

ROOT = Path(__file__).resolve().parents[2]
LORA = ROOT / "models" / "loras" / "sanacog_tiny_sana_outline_lora.safetensors"
MODEL = ROOT / "models" / "diffusion_models" / "sanacog_tiny_sana.safetensors"


def run(*arguments):
    """(exit status, what it printed, what it said of mistakes)."""
    printed, told = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(told):
        status = command.main([str(argument) for argument in arguments])
    return status, printed.getvalue(), told.getvalue()


def stored(hub, name, revision="main"):
    """{path: content} of a repository on the stand-in."""
    return hub.repositories[name].at(revision)[1]
