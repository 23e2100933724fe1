"""What --check says of memory against what a step takes on a CPU, in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

from .runs import ROOT, loaded, sana_video

MEASURE = """
import importlib.util, json, sys
import torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("run", sys.argv[1])
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
sys.path[:] = [place for place in sys.path if place not in ("", sys.argv[1].rpartition("/")[0])]
run.import_pack()
from sanacog.training import config_files, estimate, models, recipe

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

config = config_files.load(["train/example"], json.loads(sys.argv[2])).config
m, (family, shape, batch_size, text) = models.Models(config.model), json.loads(sys.argv[3])
large = recipe.build(config, m, meta=True)   # imports, and what PyTorch sets up once
torch.nn.functional.linear(torch.ones(8, 8, requires_grad=True), torch.ones(8, 8)).sum().backward()
said = estimate.memory(config, m, shape, batch_size, text)
before = status("VmRSS")
made = recipe.build(config, m)
loss, optimizers, average = recipe.Loss(made, 1.0), recipe.make_optimizers(config, made.named), recipe.average(config, made.named)
batch = {name: torch.randn(t.shape) if t.is_floating_point() else torch.ones(t.shape, dtype=t.dtype)
         for name, t in estimate._batch(made, config, shape, batch_size, text).items()}
for step in range(2):
    if step == 1:
        open("/proc/self/clear_refs", "w").write("5")
    loss(batch, torch.Generator().manual_seed(step)).mean().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
print(json.dumps([said.peak, status("VmHWM") - before, vars(said)]))
"""
CASES = {
    "lora": ([], [32, 24, 24], 8),
    "lora checkpointed": (["train.gradient_checkpointing=true"], [32, 32, 32], 16),
    "full": (["train.kind=full", "lora=null", "train.ema=0.9"], [32, 24, 24], 8),
    "SANA-Video 2.0 checkpointed": (["model.variant=tiny_sana_video", "model.transformer=sana_video.safetensors",
                                     "train.gradient_checkpointing=true"], [16, 5, 24, 24], 2),
}


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the peak of the resident set is Linux'")
@pytest.mark.parametrize("case", CASES)
def test_memory_is_what_was_said(tmp_path, case):
    settings, shape, batch_size = CASES[case]
    sana_video(tmp_path / "sana_video.safetensors", second=True)
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    told = subprocess.run([sys.executable, "-c", MEASURE, str(ROOT / "run.py"), json.dumps(["data.path=.", *settings]),
                           json.dumps(["sana", shape, batch_size, 24])], capture_output=True, text=True,
                          env=environment, cwd=tmp_path)
    assert told.returncode == 0, told.stderr[-2000:]
    said, measured, parts = json.loads(told.stdout.splitlines()[-1])
    assert said == pytest.approx(measured, rel=0.25), parts


@pytest.mark.parametrize("name", ["tiny_cogvideox", "2.0"])
def test_memory_grows_with_the_tokens_and_not_with_their_square(tmp_path, name):
    """Fused attention keeps no product of all tokens with all, though the meta device has no other."""
    from sanacog.training import config_files, estimate, models

    more = [] if name == "tiny_cogvideox" else [f"model.transformer={sana_video(tmp_path / 'a.safetensors', second=True)}"]
    config = config_files.load([f"models/{'tiny_sana_video' if more else name}"], ["data.path=.", *more], {}).config
    found = models.Models(config.model)
    one, four = (estimate.memory(config, found, [16, 5, side, side], 1, 24) for side in (24, 48))
    assert 2.5 < four.working / one.working < 4.5 and 2.5 < four.activations / one.activations < 4.5


def test_check_says_steps_buckets_and_memory(tmp_path):
    from sanacog.training import estimate, session

    lines = []
    run = loaded(tmp_path, "data.validation=0.2")
    estimate.check(run, lines.append)
    text = "\n".join(lines)
    assert "4 steps of 1 batches of 2" in text and "6 samples in 2 buckets, 1 held out" in text
    assert "32 x 2 x 3" in text and "activations" in text
    assert (session.folder_of(run.config) / "first_batch.png").stat().st_size > 500
    assert not (tmp_path / "cache").exists()
