"""Paired timing: ours and a baseline by turns in one process, on the same weights and the same inputs.

A machine's speed drifts, with its temperature and with whatever else runs on it, so two timings from different
minutes say little. Here every measurement of ours has a baseline's right beside it; what is reported is the median of
their ratios (ours / baseline: below 1 is faster), with its spread and with the ratio that the baseline has to itself,
which is as near to 1 as this machine can tell. Nothing is timed before both sides were seen to give the same output.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Callable

import torch

from . import roofline


class ParityError(ValueError):
    """The two sides do not compute the same thing, so their times mean nothing."""


@dataclass
class Case:
    """One thing to measure. ours and baseline are called with one of `inputs` and return a tensor of the same shape."""

    name: str
    ours: Callable
    baseline: Callable
    inputs: list[tuple]          # several on a GPU, lest a small input stay in its cache
    limit: float                 # largest relative L2 between the outputs that is still the same computation
    moved: int | None = None     # bytes that it has to read and write at least, where that is its floor
    stacks: list = field(default_factory=list)  # of the baseline's blocks, for sides.compile_blocks


@dataclass
class Spread:
    """Median, quartiles and extremes."""

    median: float
    q1: float
    q3: float
    min: float
    max: float

    @classmethod
    def of(cls, values):
        """values: two or more numbers."""
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, q1, q3, min(values), max(values))


@dataclass
class Row:
    """What was found out about one case. Times in seconds, memory in bytes, ratio = ours / baseline per pair."""

    name: str
    parity: float                # relative L2 of the outputs
    pairs: int
    ratio: Spread
    noise: Spread                # the same ratio, of the baseline to itself
    ours: Spread
    baseline: Spread
    ours_memory: int | None      # peak above what was held before the call; None where it cannot be read
    baseline_memory: int | None
    floor: float | None = None   # seconds that the baseline's products take at least on this machine (roofline.py)


def relative_l2(got, want):
    """|got - want| / |want| in fp64; NaN anywhere gives NaN. Raises ParityError when the shapes differ."""
    if got.shape != want.shape:
        raise ParityError(f"outputs differ in shape: ours {tuple(got.shape)}, baseline {tuple(want.shape)}")
    got, want = got.double(), want.double()
    return ((got - want).norm() / want.norm()).item()


class WallClock:
    """Wall time of a call. sync: called before either reading, for work that outlives its call (a GPU's)."""

    def __init__(self, now=time.perf_counter, sync=lambda: None):
        self.now, self.sync = now, sync

    def run(self, call):
        self.sync()
        start = self.now()
        call()
        self.sync()
        return self.now() - start

    def seconds(self, marks):
        return marks


class CudaClock:
    """Time on the GPU between two events, read after all calls were queued: the host's share shows only where the
    GPU had to wait for it."""

    def run(self, call):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        return start, end

    def seconds(self, marks):
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in marks]


def timed_pairs(first, second, inputs, pairs, clock):
    """Runs first, second, first, second ... on inputs in turn -> (seconds of first, seconds of second), a list each."""
    marks = [], []
    for i in range(pairs):
        for call, into in ((first, marks[0]), (second, marks[1])):
            into.append(clock.run(lambda: call(*inputs[i % len(inputs)])))
    return clock.seconds(marks[0]), clock.seconds(marks[1])


def peak_memory(call, cuda=False):
    """Peak bytes that call() takes above what was held before it; None where the system cannot tell.

    On a GPU by torch's allocator. On the CPU by the resident set (Linux): memory freed earlier is first handed back
    to the system, so neither side lives in pages that the other has left. call must have run before, or the code that
    it pages in is counted too.
    """
    if cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if sys.platform != "linux":
        return None
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to the present size
    except (OSError, AttributeError):                  # another C library, or a kernel that forbids it
        return None
    before = resident("VmRSS")
    call()
    return max(0, resident("VmHWM") - before)


def resident(field):
    """VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


@torch.inference_mode()
def measure(case, pairs=20, warmup=5, clock=None, cuda=False, machine=None):
    """Parity, then times, then peak memory of a case -> Row, with its floor where the roofline.Machine is given.

    Raises ParityError, before anything is timed, when the outputs differ by more than case.limit or are not finite.
    """
    clock = clock or WallClock()
    parity = relative_l2(case.ours(*case.inputs[0]), case.baseline(*case.inputs[0]))
    if not parity <= case.limit:  # written so that NaN fails
        raise ParityError(f"{case.name}: outputs differ by {parity:.2e} (relative L2), allowed is {case.limit:.0e}; not timed")

    timed_pairs(case.ours, case.baseline, case.inputs, warmup, clock)
    ours, baseline = timed_pairs(case.ours, case.baseline, case.inputs, pairs, clock)
    again = timed_pairs(case.baseline, case.baseline, case.inputs, max(2, pairs // 2), clock)
    return Row(
        name=case.name, parity=parity, pairs=pairs,
        ratio=Spread.of([a / b for a, b in zip(ours, baseline)]),
        noise=Spread.of([a / b for a, b in zip(*again)]),
        ours=Spread.of(ours), baseline=Spread.of(baseline),
        ours_memory=peak_memory(lambda: case.ours(*case.inputs[0]), cuda),
        baseline_memory=peak_memory(lambda: case.baseline(*case.inputs[0]), cuda),
        floor=machine and roofline.floor(roofline.operations(case.baseline, *case.inputs[0]), machine),
    )


def row_to_json(row):
    return asdict(row)


def row_from_json(data):
    """The Row in a JSON object, whatever stands beside it there."""
    spreads = {name: Spread(**data[name]) for name in ("ratio", "noise", "ours", "baseline")}
    return Row(**{field.name: spreads.get(field.name, data.get(field.name)) for field in fields(Row)})


HEADER = f"{'case':54s} {'rel. L2':>8s} {'ours':>9s} {'baseline':>9s}  {'ratio (quartiles)':22s} {'base/base':>14s}  {'peak MiB':13s} roofline"


def table_line(row):
    """One printed line: `0.97 (0.96-0.98)` is median and quartiles of ours / baseline."""
    memory = "-" if row.ours_memory is None else f"{row.ours_memory / 2**20:.0f} / {row.baseline_memory / 2**20:.0f}"
    share = "-" if row.floor is None else f"{row.floor / row.ours.median:.0%}"
    return (f"{row.name:54s} {row.parity:8.1e} {row.ours.median * 1e3:6.1f} ms {row.baseline.median * 1e3:6.1f} ms  "
            f"{row.ratio.median:.3f} ({row.ratio.q1:.3f}-{row.ratio.q3:.3f})   "
            f"{row.noise.q1:.3f}-{row.noise.q3:.3f}  {memory:13s} {share}")
