"""The memory figure of quantised models, on a small one: written, loaded by ComfyUI in a process of its own, sampled, noted."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sanacog.commands import bench as cli
from sanacog.bench import quant_memory, sana
from sanacog.storage.checkpoints import open_checkpoint

ROOT = Path(quant_memory.__file__).resolve().parents[1]
SMALL = replace(sana.SIZES["0.6B"], num_layers=2)
PROGRAM = f"""
import sys
sys.path[0] = {str(ROOT)!r}
import run
run.import_pack()
from dataclasses import replace
from pathlib import Path
from sanacog.bench import quant_memory, sana
sana.SIZES["0.6B"] = replace(sana.SIZES["0.6B"], num_layers=2)
quant_memory.main(Path(sys.argv[1]), 1)
"""


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(sana.SIZES, "0.6B", SMALL)


def test_what_a_process_prints(small, tmp_path):
    # A process of its own: in this one earlier tests have left memory that would be taken again, uncounted.
    path = tmp_path / "model.safetensors"
    quant_memory.write_model(path, "fp8")
    assert sum(t.dtype.itemsize == 1 for t in open_checkpoint(path).load().values()) > 8
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["host"].startswith("ComfyUI") and found["peak"] > found["without_model"] + 0.9 * path.stat().st_size


def test_formats_that_the_host_reads_are_written_down(small, monkeypatch, tmp_path, capsys):
    def process(command, **kw):
        kinds.append(sorted({str(t.dtype) for t in open_checkpoint(command[2]).load().values()}))
        if len(kinds) == 2:
            return subprocess.CompletedProcess(command, 1, "", "Traceback\nValueError: update ComfyUI")
        return subprocess.CompletedProcess(command, 0, "log\n" + json.dumps({"host": "H", "without_model": 2**20, "peak": 3 * 2**20}), "")

    kinds = []
    monkeypatch.setattr(quant_memory.subprocess, "run", process)
    assert cli.main(["quant-memory", "--output", str(tmp_path)]) == 0
    assert kinds == [["torch.bfloat16"], ["torch.bfloat16", "torch.float32", "torch.int8"],
                     ["torch.bfloat16", "torch.float32", "torch.float8_e4m3fn"],
                     ["torch.bfloat16", "torch.float32", "torch.float8_e4m3fn", "torch.uint8"]]
    rows = json.loads((tmp_path / "quant_memory.json").read_text())
    assert [row["name"] for row in rows] == [f"Sana 0.6B in {kind}, 512 px" for kind in ("bf16", "fp8", "nvfp4")]
    printed = capsys.readouterr().out
    assert "Sana 0.6B in int8, 512 px: not measured, ValueError: update ComfyUI" in printed and printed.count("2 MiB beside H itself") == 3
