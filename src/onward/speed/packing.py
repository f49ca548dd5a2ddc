"""Micro-batches filled with samples up to a number of tokens, by best-fit decreasing.

A pure function of the epoch's order: the longest sample goes first, each into the fullest batch that still has room.
Equal lengths keep the epoch's order, and batches stand in the order of their earliest samples, so epochs differ. How
many batches there are depends on the lengths alone, and is the same in every epoch.
Source: Johnson 1974, Fast algorithms for bin packing (best fit decreasing).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from onward.errors import DataError


def best_fit_decreasing(order: Sequence[int], lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Group `order` into batches of at most `limit` tokens.

    Args:
        order: indices of the samples.
        lengths: tokens of every sample of the data set.
        limit: tokens in one batch. A sample that is longer gets a batch of its own.

    Returns:
        The batches, each in the order of `order`, sorted by their first samples' places in it.
    """
    places = sorted(range(len(order)), key=lambda place: -lengths[order[place]])
    room: list[tuple[int, int]] = []  # (tokens left, number of the batch), sorted
    batches: list[list[int]] = []
    for place in places:
        size = lengths[order[place]]
        fit = bisect_left(room, (size, -1))
        if fit < len(room):
            left, number = room.pop(fit)
            batches[number].append(place)
        else:
            left, number = limit, len(batches)
            batches.append([place])
        if left > size:
            insort(room, (left - size, number))
    ordered = sorted(sorted(batch) for batch in batches)
    return [[order[place] for place in batch] for batch in ordered]


class PackedBatches(Sampler[list[int]]):
    """The packed micro-batches of one process, epoch after epoch.

    With several processes batches are dealt out in turn; those that do not fill a last round are split, so that every
    process takes as many.
    """

    effective_batch_size = None
    """Says to the loader that whole batches come from here."""

    def __init__(
        self, sampler: Sampler[int], lengths: Sequence[int], limit: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        """`sampler` gives the epoch's order, the same on every process; `limit` is in tokens."""
        self.sampler = sampler
        self.lengths = lengths
        self.limit = limit
        self.rank, self.world_size = rank, world_size
        self._count: int | None = None

    def __len__(self) -> int:
        if self._count is None:
            self._count = len(self._dealt(list(range(len(self.lengths)))))
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        yield from self._dealt(list(self.sampler))

    def _dealt(self, order: list[int]) -> list[list[int]]:
        batches = best_fit_decreasing(order, self.lengths, self.limit)
        while missing := -len(batches) % self.world_size:
            largest = max(range(len(batches)), key=lambda number: len(batches[number]))
            batch = batches[largest]
            if len(batch) == 1:
                raise DataError(
                    f"Packing gave {len(batches)} batches of one sample each, which {self.world_size} processes cannot "
                    f"share evenly ({missing} missing). Lower max_tokens_per_batch (now {self.limit}), or use fewer "
                    "processes."
                )
            batches[largest : largest + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        return batches[self.rank :: self.world_size]
