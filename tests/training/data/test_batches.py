"""Batches: a function of their number; every entry once an epoch; one bucket each; the same for any number of processes."""

from collections import Counter

import pytest
import torch

from sanacog.training.data.batches import Batches, pick_caption
from sanacog.training.data.buckets import Bucket
from sanacog.training.data.manifest import Row

A, B, C = Bucket(1, 512, 512), Bucket(1, 384, 672), Bucket(9, 64, 64)
ENTRIES = [A] * 10 + [B] * 7 + [C] + [A] * 3
REPEATS = [1] * 20 + [3]


def epoch(batches, number):
    return [batches.batch(number * batches.per_epoch + i) for i in range(batches.per_epoch)]


def test_every_entry_comes_its_repeats_an_epoch_in_batches_of_one_bucket():
    batches = Batches(ENTRIES, REPEATS, 4, 0)
    assert batches.per_epoch == 4 + 2 + 1  # 15 of A, 7 of B, 1 of C
    for number in range(5):
        found = epoch(batches, number)
        assert Counter(entry for batch in found for entry in batch) == {entry: REPEATS[entry] for entry in range(21)}
        assert all(len({ENTRIES[entry] for entry in batch}) == 1 for batch in found)
        assert sorted(map(len, found)) == [1, 3, 3, 4, 4, 4, 4]


def test_epochs_and_seeds_differ_and_numbers_decide():
    batches = Batches(ENTRIES, REPEATS, 4, 0)
    epochs = [epoch(batches, number) for number in range(4)]
    assert len({str(found) for found in epochs}) == 4
    assert len({str([ENTRIES[batch[0]] for batch in found]) for found in epochs}) > 1  # buckets come in another order, too
    again = Batches(ENTRIES, REPEATS, 4, 0)
    assert [again.batch(n) for n in (25, 3, 25, 8)] == [epochs[3][4], epochs[0][3], epochs[3][4], epochs[1][1]]
    assert epoch(Batches(ENTRIES, REPEATS, 4, 1), 0) != epochs[0]


def test_the_order_is_the_same_on_every_machine():
    assert [Batches([A, A, A, B, B], [1] * 5, 2, 7).batch(n) for n in range(3)] == [[0], [3, 4], [2, 1]]


def test_a_batch_given_out_can_be_changed():
    batches = Batches(ENTRIES, REPEATS, 4, 0)
    first = batches.batch(0)
    kept = list(first)
    first.clear()
    assert batches.batch(0) == kept


def test_processes_share_what_one_with_more_accumulation_sees():
    batches = Batches(ENTRIES, REPEATS, 2, 3)
    world, accumulation = 2, 3
    for step in range(4):
        ranks = [batches.batch(step * accumulation * world + a * world + rank)
                 for rank in range(world) for a in range(accumulation)]
        alone = [batches.batch(step * accumulation * world + a) for a in range(accumulation * world)]
        assert sorted(map(str, ranks)) == sorted(map(str, alone))


def test_what_is_left_over_is_dropped_if_asked_and_comes_in_other_epochs():
    batches = Batches(ENTRIES, REPEATS, 4, 0, drop_last=True)
    assert batches.per_epoch == 3 + 1
    found = [batch for number in range(20) for batch in epoch(batches, number)]
    assert {len(batch) for batch in found} == {4}
    assert {entry for batch in found for entry in batch} == set(range(21)) - {17}  # the only one of its bucket
    with pytest.raises(ValueError, match="data.batch_size smaller"):
        Batches([A, B], [1, 1], 2, 0, drop_last=True)


def test_what_cannot_be_batched():
    with pytest.raises(ValueError, match="none"):
        Batches([], [], 1, 0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        Batches([A], [1], 0, 0)
    with pytest.raises(ValueError, match="expected as many"):
        Batches([A], [1, 2], 1, 0)


# --- captions ---


def shares(row, count=4000):
    generator = torch.Generator().manual_seed(0)
    found = Counter(pick_caption(row, generator) for _ in range(count))
    return {caption: number / count for caption, number in found.items()}


def test_captions_by_their_scores():
    # 30 against 25: (30 / 25) ** 10 = 6.19 times as often; 24.9 never.
    found = shares(Row("a", "image", captions=["low", "good", "fair"], scores=[24.9, 30, 25]))
    assert found.keys() == {"good", "fair"} and found["good"] == pytest.approx(6.1917 / 7.1917, abs=0.015)
    assert shares(Row("a", "image", captions=["a", "b"], scores=[20, 24]), 50) == {"b": 1}
    assert shares(Row("a", "image", captions=["", "b", "c"], scores=[40, 30, 10]), 50) == {"b": 1}
    even = shares(Row("a", "image", captions=["a", "b", "c", "d"]))
    assert all(share == pytest.approx(0.25, abs=0.025) for share in even.values()) and len(even) == 4


def test_one_number_is_taken_whatever_there_is():
    after = set()
    for row in (Row("a", "image"), Row("a", "image", captions=["x"]), Row("a", "image", captions=["x", "y"], scores=[1, 30]),
                Row("a", "image", captions=["x", "y"], scores=[1, 30], caption_manual="by hand")):
        generator = torch.Generator().manual_seed(5)
        after.add((pick_caption(row, generator), torch.rand((), generator=generator).item()))
    assert {caption for caption, _ in after} == {"", "x", "y", "by hand"} and len({number for _, number in after}) == 1
