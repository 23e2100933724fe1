"""The paired harness on fakes whose durations are known: no real time passes here."""

import json

import pytest
import torch

from sanacog.bench import harness, record


class FakeTime:
    """A clock that calls move forward themselves."""

    def __init__(self):
        self.now = 0.0

    def call(self, seconds, result=1.0, log=None, name=""):
        """A function that takes `seconds` (a number, or a list to take in turn, 1 from its end on)."""
        steps = iter(seconds) if isinstance(seconds, list) else None

        def run(x):
            self.now += next(steps, 1.0) if steps else seconds
            if log is not None:
                log.append((name, float(x)))
            return torch.tensor([result]) * x
        return run

    def clock(self):
        return harness.WallClock(now=lambda: self.now)


X = [(torch.tensor(1.0),), (torch.tensor(2.0),), (torch.tensor(3.0),)]


def case(ours, baseline, limit=1e-5):
    return harness.Case("toy", ours, baseline, X, limit)


def test_ratio_is_ours_over_baseline_and_noise_is_baseline_over_itself():
    time = FakeTime()
    row = harness.measure(case(time.call(3.0), time.call(4.0)), pairs=4, warmup=1, clock=time.clock())
    assert (row.ratio.median, row.ratio.min, row.ratio.max) == (0.75, 0.75, 0.75)
    assert row.noise.median == 1.0
    assert (row.ours.median, row.baseline.median, row.pairs, row.parity) == (3.0, 4.0, 4, 0.0)


def test_drift_of_the_machine_cancels_in_the_median_of_the_pairs():
    time = FakeTime()
    slowing = [1.0, 1.0, 2.0, 10.0, 50.0]  # the parity call, then one warm-up, then the pairs
    ours, baseline = time.call([0.5 * s for s in slowing]), time.call(slowing)
    row = harness.measure(case(ours, baseline), pairs=3, warmup=1, clock=time.clock())
    assert row.ratio == harness.Spread(0.5, 0.5, 0.5, 0.5, 0.5)
    assert row.ours.median == 5.0


def test_sides_take_turns_on_rotating_inputs():
    time, log = FakeTime(), []
    a, b = time.call(1.0, log=log, name="a"), time.call(1.0, log=log, name="b")
    harness.timed_pairs(a, b, X, 4, time.clock())
    assert log == [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", 3), ("b", 3), ("a", 1), ("b", 1)]


@pytest.mark.parametrize("result, limit", [(1.001, 1e-5), (float("nan"), 1e-5), (float("nan"), float("inf"))])
def test_nothing_is_timed_when_the_outputs_differ(result, limit):
    time, timed = FakeTime(), []
    clock = time.clock()
    clock.run = timed.append
    with pytest.raises(harness.ParityError, match="toy"):
        harness.measure(case(time.call(1.0, result), time.call(1.0), limit), clock=clock)
    assert not timed


def test_a_difference_below_the_limit_is_reported():
    time = FakeTime()
    row = harness.measure(case(time.call(1.0, 1.001), time.call(1.0), 1e-2), pairs=2, clock=time.clock())
    assert row.parity == pytest.approx(1e-3, rel=1e-3)


def test_shapes_must_agree():
    with pytest.raises(harness.ParityError, match=r"\(3,\).*\(3, 1\)"):
        harness.relative_l2(torch.ones(3), torch.ones(3, 1))


def test_sync_stands_at_both_ends_of_a_reading():
    seen = []
    clock = harness.WallClock(now=lambda: len(seen), sync=lambda: seen.append("sync"))
    assert clock.run(lambda: seen.append("call")) == 2
    assert seen == ["sync", "call", "sync"]


def test_spread_is_of_quartiles():
    assert harness.Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == harness.Spread(3.0, 2.0, 4.0, 1.0, 5.0)


def test_peak_memory_separates_calls():
    MiB = 2**20

    def hold(n):
        return lambda: torch.ones(n * MiB // 4) + 1  # two tensors of n MiB at once

    hold(20)()
    small, large = harness.peak_memory(hold(20)), harness.peak_memory(hold(80))
    again = harness.peak_memory(hold(20))
    if large is None:
        pytest.skip("this system cannot read a peak")
    assert 38 * MiB < small < 48 * MiB and 38 * MiB < again < 48 * MiB
    assert 156 * MiB < large < 168 * MiB


def test_row_survives_json_and_a_file(tmp_path):
    time = FakeTime()
    row = harness.measure(case(time.call(3.0), time.call(4.0)), pairs=3, clock=time.clock())
    record.write(tmp_path / "new" / "toy.json", {"rows": [harness.row_to_json(row)]})
    data = json.loads((tmp_path / "new" / "toy.json").read_text())
    assert harness.row_from_json(data["rows"][0]) == row
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["toy.json"]


def test_table_line_shows_parity_beside_the_times():
    time = FakeTime()
    line = harness.table_line(harness.measure(case(time.call(3.0, 1.00001), time.call(4.0), 1e-4), pairs=3, clock=time.clock()))
    assert "1.0e-05" in line and "0.750 (0.750-0.750)" in line and "3000.0 ms" in line


def test_conditions_name_neither_host_nor_path():
    import platform
    text = json.dumps(record.conditions(dtype="float32"))
    assert platform.node() not in text and "/" not in text
    assert json.loads(text)["torch"] == torch.__version__ and json.loads(text)["threads"] == torch.get_num_threads()
