"""python run.py bench: the figures, printed and written as JSON."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import torch

from ..bench import (
    accuracy,
    cache,
    cogvideox,
    continuation,
    cpu,
    editing,
    guidance,
    harness,
    large,
    memory,
    quant,
    quant_memory,
    record,
    roofline,
    sana,
    sana_image,
    sana_video,
    training,
)
from .convert import convert

ROOT = Path(__file__).resolve().parents[1]

# name: (makes the case of a type, pairs, whether it is computed in bf16 too). One call takes seconds to minutes, so few.
SANA_CASES = {
    "step": (lambda dtype: sana.step("0.6B", 512, dtype=dtype), 8, True),
    "step-full": (lambda dtype: sana.step("0.6B", 512, prompt=sana.TOKENS, dtype=dtype), 8, True),
    "decode": (lambda _: sana.decode(512), 4, False),
    "decode-exact": (lambda _: sana.decode_exactly(1536, 1024), 3, False),
    "encode": (lambda _: sana.encode(512), 4, False),
    "picture": (lambda dtype: sana_image.picture("0.6B", 512, dtype=dtype), 2, True),
    "sprint": (lambda dtype: sana_image.sprint("0.6B", 512, dtype=dtype), 4, True),
}
COGVIDEOX_CASES = {
    "video-step": (lambda dtype: cogvideox.step("5B", 13, 224, 336, layers=2, dtype=dtype), 3, True),
    "video-decode": (lambda _: cogvideox.decode(17, 240, 360), 4, False),
    "video-encode": (lambda _: cogvideox.encode(17, 160, 240), 4, False),
    "still-encode": (lambda _: cogvideox.encode(1, 480, 720), 4, False),
}
SANA_VIDEO_CASES = {
    "sana-video-step": (lambda dtype: sana_video.step("2B 480p", (3, 30, 52), layers=1, dtype=dtype), 3, True),
    "sana-video-720p-step": (lambda dtype: sana_video.step("2B 720p", (2, 22, 40), layers=1, dtype=dtype), 3, True),
    "sana-video-clip": (lambda dtype: sana_video.clip((5, 16, 26), dtype=dtype), 3, True),
}
TRAINING_CASES = {"train-step": (lambda _: training.step("0.6B", 512), 3, False)}
CPU_CASES = {name: (*case, file) for file, cases in (("sana_cpu.json", SANA_CASES), ("cogvideox_cpu.json", COGVIDEOX_CASES),
                                                     ("sana_video_cpu.json", SANA_VIDEO_CASES),
                                                     ("training_cpu.json", TRAINING_CASES)) for name, case in cases.items()}
ACCURACY = {"accuracy": accuracy.accuracy, "video-accuracy": accuracy.video_accuracy,
            "sprint-accuracy": accuracy.sprint_accuracy, "guidance-accuracy": guidance.guidance_accuracy, "quant": lambda: quant.figures(convert),
            "editing": editing.figures, "continuation": continuation.figures, "cache": cache.figures}
MEMORY = {"decode-2k": 2048, "decode-4k": 4096}  # pixels a side
FIGURES = [*CPU_CASES, *ACCURACY, "memory", "quant-memory", *MEMORY, "pictures"]
CLOCKS = {"wall": harness.WallClock, "cpu": lambda: harness.WallClock(now=time.process_time)}


def arguments(args):
    parser = argparse.ArgumentParser(prog="run.py bench", description="Ours beside diffusers: times, memory, accuracy.")
    parser.add_argument("figures", nargs="*", metavar="FIGURE",
                        help=f"any of {', '.join(FIGURES)}; when none is named, all but the last "
                             f"{len(MEMORY) + 1}: two take up to half an hour, and pictures draws bench/results into docs/")
    parser.add_argument("--gpu", action="store_true", help="the figures of a GPU instead (bench/gpu.py)")
    parser.add_argument("--minutes", type=float, default=7.0, help="with --gpu: start no figure after this time")
    parser.add_argument("--threads", type=int, help="torch's threads, its own choice otherwise")
    parser.add_argument("--pairs", type=int, help="pairs of calls to time, the figure's own number otherwise")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall",
                        help="cpu counts this process's time on the processor: for a machine with other work, --threads 1")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "bench", help="folder for the JSON files")
    options = parser.parse_args(args)
    if unknown := set(options.figures) - {*FIGURES}:
        parser.error(f"no figure is called {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    if options.pairs is not None and options.pairs < 2:
        parser.error("--pairs: a spread needs at least 2")
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu adds up the time of all threads: it needs --threads 1")
    return options


def main(args):
    """Measure what args ask for. Returns 0, or 1 when a parity failed."""
    options = arguments(args)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.gpu:
        from ..bench import gpu
        return gpu.measure_all(options.output, options.minutes)
    figures = options.figures or [name for name in FIGURES if name not in (*MEMORY, "pictures")]
    status = 0
    if cases := [name for name in CPU_CASES if name in figures]:
        status = measure_cpu(cases, options)
    for name in ACCURACY:
        if name in figures:
            found = ACCURACY[name]()
            table = {"quant": quant, "editing": editing, "continuation": editing, "cache": editing}.get(name, accuracy)
            print("\n".join(table.lines(found)), flush=True)
            record.write(options.output / f"{name.replace('-', '_')}.json", {"conditions": record.conditions(dtype="float32"), **found})
    if "memory" in figures:
        for row in memory.rows():
            print(memory.line(row), flush=True)
            record.put_row(options.output / "memory.json", row)
        print("From shapes, in bf16, with fused kernels: weights + widest activations", *(
            memory.total_line(*total) for total in memory.totals()), sep="\n")
    if "quant-memory" in figures:
        for row in quant_memory.rows():
            print(quant_memory.line(row), flush=True)
            record.put_row(options.output / "quant_memory.json", row)
    for name in [name for name in MEMORY if name in figures]:
        row = large.on_cpu(MEMORY[name])
        print(large.line(row), flush=True)
        record.put_row(options.output / "sana_memory.json", row)
    if "pictures" in figures:
        from ..bench import pictures  # here: matplotlib is for this alone
        print(*pictures.write_all(), sep="\n")
    return status


def measure_cpu(names, options):
    """Cases of CPU_CASES -> rows of their files, written after each one; a file's other rows stay. Returns 0, or 1 when
    a parity failed."""
    failed = False
    clock = CLOCKS[options.clock]()
    machine = roofline.machine("cpu", torch.float32, clock)
    print(f"matrix products {machine.flops / 1e9:.0f} GFLOP/s, copies {machine.bytes / 1e9:.1f} GB/s\n{harness.HEADER}", flush=True)
    for name in names:
        make, pairs, in_chosen, file = CPU_CASES[name]
        for case, said in cpu.cases(make, in_chosen):
            if name == "decode-exact":
                said["baseline"] = "ours, at once"
            elif name == "train-step":
                said["baseline"] = "diffusers and PEFT, fp32, eager"
            conditions = record.conditions() | said | {"clock": options.clock, "machine": asdict(machine)}
            try:
                row = harness.measure(case, options.pairs or pairs, 0, clock, machine=machine)
            except harness.ParityError as error:
                print(error, flush=True)
                failed = True
                continue
            print(harness.table_line(row), flush=True)
            conditions["load_at_the_end"] = record.load()
            record.put_row(options.output / file, harness.row_to_json(row) | {"conditions": conditions})
    return int(failed)
