"""What memory a quantised Sana takes in ComfyUI: the file read by our loader, one step sampled, everything counted.

Sana 0.6B at 512 px at its real size, random weights, one process a format. As a script (python bench/quant_memory.py FILE 2:
model, threads) it does so in this very process and prints what it took as JSON. On a CPU FP8 and NVFP4 are turned back to 16
bits layer by layer, so a layer's weight comes on top.
"""

from __future__ import annotations

if __name__ == "__main__":  # as a script: import this very file as part of the package, and run that
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import run

    run.import_pack()
    from sanacog.bench import quant_memory

    sys.exit(quant_memory.main(Path(sys.argv[1]), int(sys.argv[2])))

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..headless import installation
from ..kernels import quant
from ..kernels.quant_layers import quantised, to_metadata
from ..sana_core import precision
from . import record, sana
from .harness import resident

SIZE, PIXELS = "0.6B", 512


def write_model(path, kind=None):
    """A model file with random weights in bf16, or in the format `kind`."""
    torch.manual_seed(0)
    state = sana.random_transformer(sana.SIZES[SIZE], "cpu").bfloat16().state_dict()
    tensors, entries = quantised(state, kind, precision.KEPT) if kind else (state, {})
    save_file({key: t.contiguous() for key, t in tensors.items()}, path, to_metadata(entries) if entries else None)


@torch.inference_mode()  # as the host runs its nodes
def main(path, threads):
    """This process's memory in bytes: ComfyUI started, the model loaded, and the most until one step was done."""
    from ..host import process

    torch.set_num_threads(threads or torch.get_num_threads())
    process.start(installation.host())
    import comfy.sample

    from ..host import compat
    from ..host.sana import model as host
    from ..host.sana_checks import TEXT_MARK

    bare = resident("VmRSS")
    model = host.load_sana(path)
    context = torch.randn(1, sana.PROMPT, sana.SIZES[SIZE].caption_channels)
    conditioning = [[context, {"attention_mask": torch.ones(1, sana.PROMPT), TEXT_MARK: True}]]
    latent = host.empty_latent(PIXELS, PIXELS, 1)["samples"]
    comfy.sample.sample(model, torch.randn_like(latent), 1, 4.5, "euler", "simple", conditioning, conditioning, latent, seed=0)
    print(json.dumps({"host": compat.VERSION, "without_model": bare, "peak": resident("VmHWM")}))


def rows():
    """bf16 and every format that the host reads -> rows, one after another."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in (None, *quant.FORMATS):
            path = Path(folder) / "model.safetensors"
            write_model(path, kind)
            done = subprocess.run([sys.executable, __file__, str(path), str(torch.get_num_threads())], capture_output=True, text=True)
            name = f"Sana {SIZE} in {kind or 'bf16'}, {PIXELS} px"
            if done.returncode:
                print(f"{name}: not measured, {done.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            yield {"name": name, "file": path.stat().st_size, **found, "conditions": record.conditions(dtype="bfloat16")}


def line(row):
    """One printed line."""
    taken = row["peak"] - row["without_model"]
    return f"{row['name']:32s} file {row['file'] / 2**20:7.0f} MiB, peak {taken / 2**20:7.0f} MiB beside {row['host']} itself"
