"""Runs interpreted_kernels.py, whose tests need Triton's interpreter from the first import on."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).with_name("interpreted_kernels.py")


def test_in_the_interpreter():
    pytest.importorskip("triton")
    kept = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}  # -q there would hide the count
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(TESTS)],
                          env={**kept, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
                          cwd=TESTS.parents[2])
    assert done.returncode == 0 and re.search(r"\b\d\d passed in", done.stdout), done.stdout[-6000:] + done.stderr[-2000:]
