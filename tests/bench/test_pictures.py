"""The pictures of the benchmark: every committed row is in one, with its own figures."""

import json

import pytest

from sanacog.bench import pictures, record


@pytest.fixture(scope="module")
def cpu():
    return pictures.results()["bench_cpu.png"]


def test_every_committed_row_is_drawn(cpu):
    title, rows = cpu
    committed = [row for name in pictures.CPU for row in json.loads((record.RESULTS / name).read_text("utf-8"))]
    assert [row.name for row in rows] == [row["name"] for row in committed] and committed[0]["conditions"]["processor"] in title
    time, memory = pictures.draw(title, rows).axes
    assert [label.get_text() for label in time.get_yticklabels()] == [row.name for row in rows]
    said = [text.get_text() for text in time.texts]
    assert all(any(text.startswith(f"{row.ratio.median:.2f}: ") for text in said) for row in rows)
    bars = sorted(round(bar.get_width(), 6) for bar in time.patches)
    assert bars == sorted([1] * len(rows) + [round(row.ratio.median, 6) for row in rows])
    assert len(memory.texts) == 2 * sum(row.baseline_memory is not None for row in rows)


def test_floors_are_marked_where_they_are_known(cpu):
    title, rows = cpu
    for row, floor in zip(rows, (0.5 * rows[0].baseline.median, *[None] * (len(rows) - 1))):
        row.floor = floor
    (marks,) = pictures.draw(title, rows).axes[0].collections[-1:]
    assert marks.get_offsets().tolist() == [[0.5, -0.2]]


def test_a_picture_is_written_for_each_device(tmp_path):
    row = json.loads((record.RESULTS / "sana_cpu.json").read_text("utf-8"))[0]
    (tmp_path / "sana_cpu.json").write_text(json.dumps([row]))
    (tmp_path / "gpu_some.json").write_text(json.dumps({"conditions": {"device": "Some GPU", "dtype": "bfloat16"}, "rows": [row]}))
    written = pictures.write_all(tmp_path, tmp_path)
    assert [path.name for path in written] == ["bench_cpu.png", "bench_gpu_some.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
