"""From an order of samples to the micro-batches of this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

from torch.utils.data import Sampler


class Indices(list[int]):
    """The sample indices of one micro-batch, and where they stand in the epoch."""

    epoch: int
    positions: Sequence[int]
    """Place of each one in the epoch's order."""
    phantom: bool
    """Whether this process had no sample left and repeats one that must not count."""
    shared_out: bool = False
    """Whether it is of the last round of an epoch, whose samples count for more or less than others."""
    sizes: list[int]
    """Samples of each micro-batch in it: of one, unless several were joined."""

    def __init__(
        self, indices: list[int], epoch: int = 0, position: int | Sequence[int] = 0, phantom: bool = False
    ) -> None:
        """`position`: place of the first one, which the others follow, or the place of each."""
        super().__init__(indices)
        self.epoch = epoch
        self.positions = range(position, position + len(indices)) if isinstance(position, int) else position
        self.phantom = phantom
        self.sizes = [len(indices)]

    @classmethod
    def joined(cls, parts: list[Indices]) -> Indices:
        """Several micro-batches as one."""
        positions = list(chain.from_iterable(part.positions for part in parts))
        whole = cls(list(chain.from_iterable(parts)), parts[0].epoch, positions, parts[0].phantom)
        whole.sizes = list(map(len, parts))
        return whole

    def stretch(self, begin: int, end: int) -> Indices:
        """Those from `begin` up to `end`."""
        return Indices(self[begin:end], self.epoch, self.positions[begin:end], self.phantom)

    @property
    def position(self) -> int:
        """Place of the first one in the epoch's order."""
        return self.positions[0] if self.positions else 0

    def __reduce__(self) -> Any:
        return Indices, (list(self), self.epoch, self.positions, self.phantom), {"sizes": self.sizes}


class MicroBatches(Sampler[list[int]]):
    """Cuts an epoch's order into the micro-batches of one process.

    The order is cut into rounds of ``world_size * batch_size`` samples; in each round process *r* takes the *r*-th
    slice. So any number of processes walks the same global order. The samples that remain at the end are shared out
    evenly; a process for which none is left gets a *phantom* that repeats one and does not count, because all processes
    must take part in the exchange of gradients.
    """

    def __init__(
        self, sampler: Sampler[int], batch_size: int, *, drop_last: bool = False, rank: int = 0, world_size: int = 1
    ) -> None:
        """`batch_size`: samples per micro-batch and process."""
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.skip = 0
        self.together = 1
        """Micro-batches that are given out as one; more than 1 in a run that found room for larger ones."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        total = len(self.sampler)  # type: ignore[arg-type]
        rounds, rest = divmod(total, self.batch_size * self.world_size)
        return rounds + (1 if rest and not self.drop_last else 0)

    def weight(self, number: int) -> float:
        """What the mean loss of this process's micro-batch `number` counts for, beside those of the other processes.

        1 except at the end of an epoch, where the processes have different numbers of samples; 0 for a phantom.
        """
        size = self.batch_size * self.world_size
        rounds, rest = divmod(len(self.sampler), size)  # type: ignore[arg-type]
        if self.world_size == 1 or number < rounds or not rest:
            return 1.0
        each, extra = divmod(rest, self.world_size)
        return (each + (1 if self.rank < extra else 0)) * self.world_size / rest

    def __iter__(self) -> Iterator[Indices]:
        """Yield the micro-batches, leaving out the first `skip` of them this once."""
        batches = self._one_by_one()
        if self.together == 1:
            yield from batches
        while group := list(islice(batches, self.together)):
            alone = [group.pop()] if group[-1].shared_out and len(group) > 1 else []
            yield Indices.joined(group)
            yield from alone

    def _one_by_one(self) -> Iterator[Indices]:
        skip, self.skip = self.skip, 0
        size = self.batch_size * self.world_size
        order = iter(self.sampler)
        next(islice(order, skip * size, skip * size), None)  # skips indices; no sample is fetched
        position = skip * size
        while chunk := list(islice(order, size)):
            if len(chunk) == size:
                start = self.rank * self.batch_size
                yield Indices(chunk[start : start + self.batch_size], self.epoch, position + start)
            elif not self.drop_last:
                rest = self._share(chunk, position)
                rest.shared_out = self.world_size > 1
                yield rest
            position += len(chunk)

    def _share(self, chunk: list[int], position: int) -> Indices:
        each, extra = divmod(len(chunk), self.world_size)
        start = self.rank * each + min(self.rank, extra)
        mine = chunk[start : start + each + (1 if self.rank < extra else 0)]
        if not mine:
            return Indices(chunk[:1], self.epoch, position, phantom=True)
        return Indices(mine, self.epoch, position + start)


class GivenBatches(Sampler[list[int]]):
    """Micro-batches that a batch sampler already made for this very process."""

    def __init__(self, batch_sampler: Sampler[list[int]], *, rank: int = 0) -> None:
        self.sampler = batch_sampler
        self.batch_size = getattr(batch_sampler, "batch_size", None)
        self.drop_last = getattr(batch_sampler, "drop_last", False)
        self.rank = rank
        self.epoch = 0
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration, also for the samplers that lie below."""
        self.epoch = epoch
        below: Any = self.sampler
        while below is not None:
            if hasattr(below, "set_epoch"):
                below.set_epoch(epoch)
            below = getattr(below, "batch_sampler", None) or getattr(below, "sampler", None)

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Indices]:
        """Yield the micro-batches, leaving out the first `skip` of them this once."""
        skip, self.skip = self.skip, 0
        position = self.rank << 40  # keeps the positions of processes apart
        for number, batch in enumerate(self.sampler):
            if number >= skip:
                yield Indices(list(batch), self.epoch, position)
            position += len(batch)
