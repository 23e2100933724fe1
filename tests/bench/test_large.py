"""The memory figure of large pictures, on a small autoencoder: measured in a process, read back, written down."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sanacog.commands import bench as cli
from sanacog.bench import large

ROOT = Path(large.__file__).resolve().parents[1]
PROGRAM = f"""
import sys
sys.path[0] = {str(ROOT)!r}
import run
run.import_pack()
from sanacog.bench import large
small = large.DCAEParams(**dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (8, 16, 32, 32, 32, 32)))
large.DCAEParams = lambda: small
large.main(1056, 1)
"""


def test_what_a_process_prints():
    # A process of its own: in this one earlier tests have left memory that would be taken again, uncounted.
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pieces"] == 16 and found["seconds"] > 0
    picture = 3 * 1056**2 * 4
    assert found["peak"] > found["before"] + picture and found["before"] >= found["without_weights"] > 0


def test_figure_is_written(monkeypatch, tmp_path, capsys):
    asked = []

    def process(command, **kw):
        asked.append(command[1:])
        return subprocess.CompletedProcess(command, 0, json.dumps({"pieces": 25, "seconds": 2.0, "peak": 3 * 2**30}), "")

    monkeypatch.setattr(large.subprocess, "run", process)
    assert cli.main(["decode-4k", "--output", str(tmp_path)]) == 0
    assert asked[0][0].endswith("large.py") and asked[0][1] == "4096"
    assert "25 pieces, peak 3.00 GiB" in capsys.readouterr().out
    row, = json.loads((tmp_path / "sana_memory.json").read_text())
    assert row["name"] == "DC-AE decode, 4096 px, in pieces that equal the whole" and row["conditions"]["dtype"] == "bfloat16"


def test_a_process_that_fails_is_told(monkeypatch):
    monkeypatch.setattr(large.subprocess, "run", lambda command, **kw: subprocess.CompletedProcess(command, 1, "", "out of memory"))
    with pytest.raises(RuntimeError, match="4096 px failed:\nout of memory"):
        large.on_cpu(4096)
