"""The figures of one GPU, in under ten minutes: python bench/gpu.py, or python run.py bench --gpu --here.

Needs torch; diffusers where it is importable. Correctness comes first: each model in fp32 and in bf16 against
diffusers on the same weights, before its time. Then paired times, eager against eager and compiled against compiled, and
each fused kernel beside the eager operations that it stands for, with its share of the memory's speed.
Without diffusers the baseline is our own eager model: what is then shown is what compiling gains.
"""

from __future__ import annotations

if __name__ == "__main__":  # as a script: import this very file as part of the package, and run that
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import run

    run.import_pack()
    from sanacog.commands.bench import main

    sys.exit(main(["--gpu", *sys.argv[1:]]))

import gc
import re
import time
from dataclasses import asdict, replace

import torch

from . import cogvideox, harness, kernels, large, record, roofline, sana, sana_image, sides

PAIRS, WARMUP, SETS = 30, 5, 3
STEPS = [(size, pixels) for size in ("0.6B", "1.6B") for pixels in (512, 1024, 2048)]
SPRINT = (1, 2)       # steps
CLIPS = [("5B", 13, 480, 720), ("1.5-5B", 22, 768, 1360)]  # variant, latent frames, height and width: the default sizes
LAYERS = 4            # of the 42, all alike: the ratio of the whole, in a tenth of the time
VIDEO = (49, 480, 720)       # frames, height and width that the VAE is timed with, and a single frame of that size
VIDEO_CHECK = (9, 64, 96)    # and compared
LARGE = 4096                 # pixels a side of the picture whose memory is measured
FEW = 3               # pairs of what takes up to seconds a call
FP32_LIMIT = 1e-4  # a GPU's libraries pick other algorithms, so other orders of summation, for each side


def measure_all(output, minutes, steps=STEPS, pixels=1024, clips=CLIPS, video=VIDEO, sizes=kernels.SIZES, device="cuda"):
    """Everything, correctness first; no figure is started after `minutes`.

    Writes gpu_<device>.json into the folder output, after each figure. Returns 0, or 1 when a parity failed or there is
    no GPU. steps, pixels, clips, video, sizes (of the kernels) and device are other ones in tests only.
    """
    if device == "cuda" and not torch.cuda.is_available():
        print("bench --gpu: torch sees no CUDA device here; python run.py bench measures on the CPU")
        return 1
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    bench = Bench(output, minutes, device)

    def case(make, *sizes, dtype=torch.bfloat16, **kw):
        return lambda: make(*sizes, device=device, dtype=dtype, **kw)

    def clip_step(variant, *size, **kw):
        return case(cogvideox.step, variant, *size, layers=LAYERS, **kw)

    dtypes = torch.float32, torch.bfloat16
    for size in dict(steps):
        bench.check(*(case(sana.step, size, 512, dtype=dtype) for dtype in dtypes))
    bench.check(*(case(sana.decode, pixels, dtype=dtype) for dtype in dtypes))
    for variant, frames, *_ in clips:
        bench.check(*(clip_step(variant, frames, 256, 256, dtype=dtype) for dtype in dtypes))
    bench.check(*(case(cogvideox.decode, *VIDEO_CHECK, dtype=dtype) for dtype in dtypes))

    if bench.cuda:
        bench.memory(LARGE)

    print("\n" + harness.HEADER)
    largest = steps[-1][0]
    for compiled in (False, True):
        for size, side in steps:
            bench.row(case(sana.step, size, side, sets=SETS, compiled=compiled))
        bench.row(case(sana.decode, pixels, compiled=compiled))
        for clip in clips:
            bench.row(clip_step(*clip, compiled=compiled), FEW)
        bench.row(case(sana_image.sprint, largest, pixels, sets=SETS, steps=1, compiled=compiled))
    bench.row(case(sana.encode, pixels))
    for size, count in [(size, count) for size in dict(steps) for count in SPRINT if (size, count) != (largest, 1)]:
        bench.row(case(sana_image.sprint, size, pixels, sets=SETS, steps=count))
    for size in dict(steps):
        bench.row(case(sana_image.picture, size, pixels), FEW)
    bench.row(case(cogvideox.encode, 1, *video[1:]))
    for make in (cogvideox.decode, cogvideox.encode):
        bench.row(case(make, *video), FEW)
    for what in sizes:
        for size in sizes[what]:
            bench.row(lambda: kernels.kernel(what, size, device, torch.bfloat16, sets=SETS), into="kernels")
    if bench.report["left_out"]:
        print(f"{bench.report['left_out']} figures left out: the time was over")
    return int(bool(bench.report["failed"]))


class Bench:
    """The report so far, and the time it has to be done by."""

    def __init__(self, output, minutes, device):
        self.end = time.monotonic() + 60 * minutes
        self.cuda = device == "cuda"
        conditions = record.conditions(device, "bfloat16")
        name = re.sub(r"[^a-z0-9]+", "_", conditions["device"].lower()).strip("_")
        self.path = output / f"gpu_{name}.json"
        self.clock = harness.CudaClock() if self.cuda else harness.WallClock()
        self.bandwidth = kernels.copy_bandwidth(self.clock, device, 2**30 if self.cuda else 2**20)
        self.machine = roofline.machine(device, torch.bfloat16, self.clock) if self.cuda else None
        self.report = {"baseline": "diffusers" if sides.DIFFUSERS else "ours, eager", "conditions": conditions,
                       "copied_bytes_a_second": self.bandwidth, "machine": self.machine and asdict(self.machine), "checks": [], "rows": [], "host_rows": [], "kernels": [],
                       "failed": [], "left_out": 0}
        print(f"{conditions['device']}, torch {torch.__version__}, baseline: {self.report['baseline']}", flush=True)

    def write(self):
        record.write(self.path, self.report)

    @torch.inference_mode()
    def check(self, make, make_half):
        """Relative L2 of ours in fp32, and of both sides in bf16, to the baseline in fp32."""
        case = make()
        want = case.baseline(*case.inputs[0])
        found = {"name": case.name, "fp32": harness.relative_l2(case.ours(*case.inputs[0]), want)}
        del case
        half = make_half()
        found["ours_bf16"] = harness.relative_l2(half.ours(*half.inputs[0]), want)
        found["baseline_bf16"] = harness.relative_l2(half.baseline(*half.inputs[0]), want)
        line = (f"{found['name']:54s} fp32 {found['fp32']:.1e}, bf16 {found['ours_bf16']:.1e} "
                f"(baseline in bf16 {found['baseline_bf16']:.1e})")
        print(line, flush=True)
        self.report["checks"].append(found)
        # bf16 alone costs a deep model about a per cent, the baseline too; ours may not cost visibly more.
        limit = max(half.limit, 1.5 * found["baseline_bf16"])
        if not (found["fp32"] <= FP32_LIMIT and found["ours_bf16"] <= limit):
            print("FAILED: this is not the same computation")
            self.report["failed"].append(line)
        self.write()
        del half
        self.release()

    def memory(self, pixels):
        """What decoding one large picture takes."""
        found = large.on_gpu(pixels)
        print(large.line(found), flush=True)
        self.report["memory"] = [found]
        self.write()
        self.release()

    def row(self, make, pairs=None, into="rows"):
        """One case, timed on the GPU, and by the wall clock too, which sees the host when launching takes longer; not where
        `pairs` are counted, since such calls are long. Where its bytes are known, its speed as a share of a copy's."""
        if time.monotonic() > self.end:
            self.report["left_out"] += 1
            self.write()
            return
        try:
            case, count = make(), pairs or PAIRS
            sync = torch.cuda.synchronize if self.cuda else lambda: None
            machine = self.machine if into == "rows" else None
            found = [(into, harness.measure(case, count, min(WARMUP, count), self.clock, self.cuda, machine))]
            if pairs is None:
                case = replace(case, name=case.name + ", wall clock")
                found.append(("host_rows", harness.measure(case, count, 1, harness.WallClock(sync=sync), self.cuda)))
        except (ValueError, torch.cuda.OutOfMemoryError) as error:
            print(f"FAILED: {error}", flush=True)
            self.report["failed"].append(str(error))
        else:
            for rows, row in found:
                share = {"share_of_copy": case.moved / row.ours.median / self.bandwidth} if case.moved and rows == "kernels" else {}
                print(harness.table_line(row) + "".join(f"  {value:.0%} of a copy" for value in share.values()), flush=True)
                self.report[rows].append(harness.row_to_json(row) | share)
        self.write()
        case = None
        self.release()

    def release(self):
        """Give back what the last figure held, and forget what was compiled for it."""
        torch.compiler.reset()
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
