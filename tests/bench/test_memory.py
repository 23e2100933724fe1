"""Predicted memory, by the formulas that the host is told, against a process's resident set: one small case each."""

import json
import subprocess
import sys

import pytest

from sanacog.commands import bench as cli
from sanacog.bench import cogvideox, memory, sana
from sanacog.sana_core.memory import numbers_a_token, picture_bytes

# Some 30 to 250 MiB each, seconds together; the whole list is `run.py bench memory`. In fp32 and with room: what torch's
# libraries take for themselves, in bf16 above all, depends on the processor.
SMALL = ["sana-0.6B-1024", "cogvideo-2B", "dcae-decode-256", "dcae-encode-256", "vae-encode-5"]
ROOM = 1.5


@pytest.mark.skipif(sys.platform != "linux", reason="the resident set is read from /proc")
def test_prediction_holds():
    for name, predicted, found in memory.measured("float32", SMALL):
        if found is None:
            pytest.skip("this system forbids setting the high-water mark back")
        assert 1 / ROOM < predicted / found < ROOM, (name, predicted, found)


def test_fused_kernels_take_less():
    params = sana.SIZES["1.6B"]
    assert numbers_a_token(params, 2, True) == numbers_a_token(params, 4, True) < numbers_a_token(params, 4, False)
    assert numbers_a_token(params, 2, False) == 16 * params.width > numbers_a_token(params, 4, False)
    assert picture_bytes(128, 100, 2, True) == 2 * picture_bytes(128, 100, 2, False) == picture_bytes(128, 100, 4, True)


def test_totals_follow_the_shapes():
    found = {what: (held, activations) for what, held, activations in memory.totals()}
    held, activations = found["Sana 1.6B step, 1024 px, batch 2"]
    assert held == 2 * sum(p.numel() for p in sana.random_transformer(sana.SIZES["1.6B"], "meta").parameters())
    assert found["Sana 1.6B step, 4096 px, batch 2"] == (held, 16 * activations)
    tokens = 2 * 13 * 30 * 45
    assert found["CogVideoX 5B step, 49 frames of 480 x 720 px, batch 2"][1] == tokens * 8 * cogvideox.VARIANTS["5B"].width * 2
    assert found["T5-XXL encoder"][0] // 2 == 4762310656 and found["Gemma-2-2B"][0] // 2 == 2614341888


def test_figure_is_written(monkeypatch, tmp_path, capsys):
    def process(command, **kw):
        assert kw["env"]["MALLOC_MMAP_THRESHOLD_"]
        return subprocess.CompletedProcess(command, 0, json.dumps([[command[-1], 3 * 2**20, 2 * 2**20]]), "")

    monkeypatch.setattr(memory.subprocess, "run", process)
    assert cli.main(["memory", "--output", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "memory.json").read_text())
    assert len(rows) == len(memory.FP32) + len(memory.BF16) and {row["ratio"] for row in rows} == {1.5}
    printed = capsys.readouterr().out
    assert printed.count("further than 1.25") == len(rows) and "T5-XXL encoder" in printed


def test_a_process_that_fails_is_told(monkeypatch):
    monkeypatch.setattr(memory.subprocess, "run", lambda command, **kw: subprocess.CompletedProcess(command, 1, "", "killed"))
    with pytest.raises(RuntimeError, match="sana-0.6B-512 failed:\nkilled"):
        memory.measured("float32", ["sana-0.6B-512"])
