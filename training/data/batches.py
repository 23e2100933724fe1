"""Which entries make batch number n, and which of several captions is taken: functions of numbers and seeds alone.

So a run that goes on where it stopped, and one with more processes, sees the batches that it would have seen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch

from .buckets import Bucket
from .manifest import Row, captions_of

# Source: NVlabs/Sana, diffusion/data: captions are drawn with p ~ score ** (1 / temperature) among those of this score at least.
LEAST_SCORE, TEMPERATURE = 25.0, 0.1


class Batches:
    """Batches of entries of one bucket each; every entry comes `repeats` times an epoch.

    Within an epoch the entries of each bucket are shuffled, cut into batches, and the batches of all buckets shuffled. What is
    left of a bucket makes a short batch, or with drop_last is left out of this epoch. With W processes and A accumulated batches,
    step s of process r takes the batches s * A * W + a * W + r.
    """

    def __init__(self, buckets_of_entries: Sequence[Bucket], repeats: Sequence[int], batch_size: int, seed: int,
                 drop_last: bool = False):
        if len(buckets_of_entries) != len(repeats):
            raise ValueError(f"There are {len(buckets_of_entries)} entries and {len(repeats)} numbers of repeats, expected as "
                             "many.")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1.")
        self.batch_size, self.seed, self.drop_last = batch_size, seed, drop_last
        members: dict[Bucket, list[int]] = {}
        for entry, (bucket, count) in enumerate(zip(buckets_of_entries, repeats)):
            members.setdefault(bucket, []).extend([entry] * count)
        # By size: the order in which files come does not decide the order of the buckets.
        self.members = [members[bucket] for bucket in sorted(members)]
        self.per_epoch = sum(len(entries) // batch_size if drop_last else math.ceil(len(entries) / batch_size)
                             for entries in self.members)
        if not self.per_epoch:
            sizes = ", ".join(f"{bucket}: {len(members[bucket])}" for bucket in sorted(members)) or "none"
            raise ValueError(f"No batch of {batch_size} can be made (entries by bucket: {sizes}). Add files, or make "
                             "data.batch_size smaller.")
        self._epoch, self._plan = -1, []

    def batch(self, n: int) -> list[int]:
        """The entry numbers of batch n, counted over all epochs and processes from 0."""
        epoch, position = divmod(n, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, self._shuffled(epoch)
        return list(self._plan[position])

    def _shuffled(self, epoch: int) -> list[list[int]]:
        dice, plan = random.Random(f"{self.seed} {epoch}"), []
        for entries in self.members:
            order = list(entries)
            dice.shuffle(order)
            stop = len(order) // self.batch_size * self.batch_size if self.drop_last else len(order)
            plan += [order[start : start + self.batch_size] for start in range(0, stop, self.batch_size)]
        dice.shuffle(plan)
        return plan


def pick_caption(row: Row, generator: torch.Generator) -> str:
    """One of a row's captions, "" when it has none; always takes one number from the generator.

    With scores, a caption is drawn with p ~ score ** 10 among those of 25 and more; if there are none, it is the best one. Without,
    all are as likely.
    """
    drawn = torch.rand((), generator=generator, dtype=torch.float64).item()
    captions = captions_of(row)
    if len(captions) <= 1:
        return captions[0] if captions else ""
    weights = [1.0] * len(captions)
    if row.scores:
        scores = [score for score, caption in zip(row.scores, row.captions) if caption.strip()]
        best = max(scores)
        if best < LEAST_SCORE:
            return captions[scores.index(best)]
        weights = [(score / best) ** (1 / TEMPERATURE) if score >= LEAST_SCORE else 0.0 for score in scores]
    level = drawn * sum(weights)
    for caption, weight in zip(captions, weights):
        if level < weight:
            return caption
        level -= weight
    return next(caption for caption, weight in reversed([*zip(captions, weights)]) if weight)  # the sum was rounded up
