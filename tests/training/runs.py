"""Small runs for tests: drawn pictures in two shapes, the embedded models at 64 px, a few steps."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import safetensors.torch
import torch
from PIL import Image

from sanacog.sana_core.video_checkpoint import from_canonical, network
from sanacog.sana_core.video_config import SanaVideo2Params, SanaVideoParams

ROOT = Path(__file__).resolve().parents[2]
FAST = ("data.buckets=[[64, 64], [64, 96]]", "data.batch_size=2", "data.workers=0", "train.steps=4", "train.warmup=0",
        "lora.rank=4", "validation.every=null", "validation.prompts=[]", "output.save_every=100", "output.tracker=none")
SCRIPT = """
import importlib.util, sys, torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("run", sys.argv[1])
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
sys.path[:] = [place for place in sys.path if place not in ("", sys.argv[1].rpartition("/")[0])]
run.import_pack()
from sanacog.commands import train
raise SystemExit(train.main(sys.argv[2:]))
"""


def pictures(folder: Path, count: int = 7) -> Path:
    """Gradients with captions, every third one wide; one of them is alone in its batch."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        height, width = (80, 120) if i % 3 == 2 else (90, 90)
        y, x = np.mgrid[:height, :width] / 120
        Image.fromarray((255 * np.stack([x, y, np.full_like(x, i / count)], -1)).astype(np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {'red' if i % 2 else 'blue'} circle on a green background" + " large" * (i % 3))
    return folder


def clips(folder: Path, count: int = 4) -> Path:
    """Clips of a square that moves, 9 frames and more of 64 px at 8 a second, with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        with av.open(str(folder / f"{i}.mp4"), "w") as out:
            stream = out.add_stream("mpeg4", rate=8)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for k in range(11):
                frame = np.full((64, 64, 3), 40 * i, np.uint8)
                frame[20:40, 3 * k : 3 * k + 20] = (255, 0, 0)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            out.mux(stream.encode())
        (folder / f"{i}.txt").write_text("a red square moving right on a black background")
    return folder


def sana_video(path: Path, second: bool = False) -> Path:
    """A SANA-Video that goes with the embedded autoencoder and text encoder, with random weights; second: 2.0."""
    torch.manual_seed(0)
    model = network(SanaVideo2Params(3, 96, 3, (1,), linear_head_dim=24, softmax_head_dim=48, in_channels=16, out_channels=16,
                                     caption_channels=96, mlp_ratio=2.0, depth_group=2, latents="cogvideox", flow_shift=3.0)
                    if second else SanaVideoParams(2, 2, 2, 32, attention_head_dim=32, caption_channels=96, latents="cogvideox",
                                                   flow_shift=3.0, patch_size=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    safetensors.torch.save_file({k: t.contiguous() for k, t in from_canonical(model.state_dict(), "diffusers").items()}, path,
                                {"config": json.dumps(dataclasses.asdict(model.params))})
    return path


def settings(tmp_path: Path, *more: str, name: str = "run") -> list[str]:
    """Arguments after `train/example`."""
    return [f"data.path={pictures(tmp_path / 'pictures')}", f"data.cache={tmp_path / 'cache'}", f"output.folder={tmp_path / 'out'}",
            f"output.name={name}", *FAST, *more]


def loaded(tmp_path: Path, *more: str, name: str = "run", config: str = "train/example"):
    from sanacog.training import config_files

    return config_files.load([config], settings(tmp_path, *more, name=name), environ={})


def start(tmp_path: Path, *more: str, name: str = "run", processes: int = 1, config: str = "train/example",
          environment: dict | None = None) -> subprocess.Popen:
    """The command in a process of its own, or in several by torchrun."""
    script = tmp_path / "start.py"
    script.write_text(SCRIPT)
    runner = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.Popen(
        [sys.executable, *runner, str(script), str(ROOT / "run.py"), config, *settings(tmp_path, *more, name=name)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | (environment or {}))
