"""What memory decoding a large picture takes: DC-AE at its real size, random weights, bf16, tiles of 1024 px.

As a script (python bench/large.py 4096 2: pixels a side, threads) it decodes in this very process and prints what it took
as JSON: so `on_cpu` gets a process in which nothing else has been.
"""

from __future__ import annotations

if __name__ == "__main__":  # as a script: import this very file as part of the package, and run that
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import run

    run.import_pack()
    from sanacog.bench import large

    sys.exit(large.main(*map(int, sys.argv[1:])))

import json
import subprocess
import sys
import time

import torch

from ..sana_core import exact_tiles
from ..sana_core.autoencoder import AutoencoderDC, DCAEParams
from . import record
from .harness import resident


def autoencoder(device, dtype=torch.bfloat16):
    """The whole of it, encoder too, as a host keeps it."""
    model = AutoencoderDC(DCAEParams(), device=device, dtype=dtype).eval().requires_grad_(False)
    return model.to(memory_format=torch.channels_last)


@torch.inference_mode()
def decode(model, pixels):
    """One picture in pieces that equal the whole -> (how many, seconds)."""
    weight = model.decoder.conv_in.weight
    z = torch.randn(1, model.params.latent_channels, *[pixels // model.params.compression] * 2).to(weight)
    start = time.perf_counter()
    picture = model.decode_exactly(z, z.new_empty(1, 3, pixels, pixels, dtype=torch.float32))
    if not picture.isfinite().all():
        raise ValueError("the picture is not finite: these weights measure nothing")
    return exact_tiles.count(model.decoder.parts(), *z.shape[2:]), time.perf_counter() - start


def main(pixels, threads=0):
    """This process's memory in bytes, all of it: with torch loaded, with the weights, and at the most."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    bare = resident("VmRSS")
    model = autoencoder("cpu")
    loaded = resident("VmRSS")
    pieces, seconds = decode(model, pixels)
    print(json.dumps({"pieces": pieces, "seconds": seconds, "without_weights": bare, "before": loaded, "peak": resident("VmHWM")}))


def on_cpu(pixels):
    """A new process's peak -> row."""
    done = subprocess.run([sys.executable, __file__, str(pixels), str(torch.get_num_threads())], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"decoding {pixels} px failed:\n{done.stderr}")
    return named(pixels, json.loads(done.stdout), record.conditions(dtype="bfloat16"))


def on_gpu(pixels):
    """The allocator's peak, weights and picture included -> row."""
    torch.cuda.reset_peak_memory_stats()
    model = autoencoder("cuda")
    before = torch.cuda.memory_allocated()
    pieces, seconds = decode(model, pixels)
    return named(pixels, {"pieces": pieces, "seconds": seconds, "before": before, "peak": torch.cuda.max_memory_allocated()},
                 record.conditions("cuda", "bfloat16"))


def named(pixels, found, conditions):
    return {"name": f"DC-AE decode, {pixels} px, in pieces that equal the whole", **found, "conditions": conditions}


def line(row):
    """One printed line."""
    return f"{row['name']:58s} {row['pieces']:3d} pieces, peak {row['peak'] / 2**30:.2f} GiB, {row['seconds']:.0f} s"
