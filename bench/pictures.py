"""The results as pictures: python run.py bench pictures draws the JSON of bench/results into docs/."""

from __future__ import annotations

import json
from pathlib import Path

from . import harness, record

DOCS = Path(__file__).resolve().parents[1] / "docs"
CPU = ("sana_cpu.json", "cogvideox_cpu.json")
OURS, BASELINE, FLOOR = "#2a7f62", "#b9b9b9", "#111111"


def results(folder=record.RESULTS):
    """{picture's file name: (title, rows)} of the JSON files in a folder; GPUs have a picture each."""
    cpu = [row for name in CPU if (folder / name).exists() for row in json.loads((folder / name).read_text("utf-8"))]
    found = {}
    if cpu:
        machines = " and ".join(dict.fromkeys(f"{row['conditions']['processor']}, {row['conditions']['threads']} threads" for row in cpu))
        found["bench_cpu.png"] = (f"{machines}, fp32", cpu)
    for path in sorted(folder.glob("gpu_*.json")):
        report = json.loads(path.read_text("utf-8"))
        found[f"bench_{path.stem}.png"] = (f"{report['conditions']['device']}, {report['conditions']['dtype']}", report["rows"])
    return {name: (title, [harness.row_from_json(row) for row in rows]) for name, (title, rows) in found.items()}


def draw(title, rows):
    """A matplotlib Figure: time and peak memory of each row as shares of the baseline's, with the floor where it is known."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.2 + 0.62 * len(rows)), layout="constrained")
    time, memory = figure.subplots(1, 2, sharey=True)
    places = range(len(rows))
    for axes, name in ((time, "time"), (memory, "peak memory above the weights")):
        axes.barh([p + 0.2 for p in places], 1, 0.38, color=BASELINE, label="diffusers")
        axes.set_title(f"{name}, diffusers = 1", fontsize=10)
        axes.set_xlim(0, 1.25)
    shares = [row.ratio.median for row in rows]
    spread = [[row.ratio.median - row.ratio.q1 for row in rows], [row.ratio.q3 - row.ratio.median for row in rows]]
    time.barh([p - 0.2 for p in places], shares, 0.38, xerr=spread, color=OURS, label="ours, median and quartiles")
    memory.barh([p - 0.2 for p in places], [row.ours_memory / row.baseline_memory if row.baseline_memory else 0 for row in rows],
                0.38, color=OURS)
    for place, row in zip(places, rows):
        time.text(0.02, place - 0.2, f"{row.ratio.median:.2f}: {seconds(row.ours.median)}", va="center", color="white", fontsize=8)
        time.text(0.02, place + 0.2, seconds(row.baseline.median), va="center", fontsize=8)
        if row.baseline_memory:
            memory.text(0.02, place - 0.2, f"{row.ours_memory / 2**20:,.0f} MiB", va="center", color="white", fontsize=8)
            memory.text(0.02, place + 0.2, f"{row.baseline_memory / 2**20:,.0f} MiB", va="center", fontsize=8)
    known = [(place, row.floor / row.baseline.median) for place, row in zip(places, rows) if row.floor]
    if known:
        time.scatter([share for _, share in known], [place - 0.2 for place, _ in known], marker="|", s=260, color=FLOOR,
                     label="floor: the products alone", zorder=3)
    time.set_yticks(places, [row.name for row in rows], fontsize=8)
    time.invert_yaxis()
    figure.legend(*time.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def seconds(value):
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def write_all(folder=record.RESULTS, docs=DOCS):
    """Draw every picture; returns the paths."""
    paths = []
    for name, (title, rows) in results(folder).items():
        paths.append(docs / name)
        draw(title, rows).savefig(paths[-1], dpi=110)
    return paths
