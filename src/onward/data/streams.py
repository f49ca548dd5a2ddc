"""Iterable data sets: draws that depend on the place in the stream, and resuming without replay where the data can.

A stream that has `state_dict` and `load_state_dict` is resumed from its state, one state per loader worker. Any other
is replayed: its samples are pulled and dropped up to the place where the run stood.
"""

from __future__ import annotations

import copy
import inspect
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import IterableDataset
from torch.utils.data._utils.pin_memory import pin_memory

from onward.data.draws import key_of, mark, rewind, seed_streams
from onward.data.generators import owned_by, seed_owned
from onward.data.order import has_length

logger = logging.getLogger(__name__)

_OPENING = -2  # stands in for the position in the key of what a stream draws before its first sample
_COLLATE = -1


@dataclass
class Start:
    """Where one worker's copy of a stream begins."""

    samples: int = 0
    """Samples that this copy has already given, to this process or another."""
    state: dict[str, Any] | None = None
    """The stream's own state there; `None` to replay up to it."""
    ended: bool = False
    """Whether this pass has no sample left. The state need not say so: some streams stand at their beginning again."""
    idle_first: bool = False
    """Whether this worker sits out the first round, so that the turns of the workers go on where they stood."""


@dataclass
class Carried:
    """A batch on its way from a worker, with what it takes to resume behind it."""

    batch: Any
    worker: int
    samples: int
    state: dict[str, Any] | None
    ended: bool = False

    def pin_memory(self) -> Carried:
        """Page-lock the batch; a `DataLoader` asks for it like this where it does not know a type."""
        self.batch = pin_memory(self.batch)  # type: ignore[no-untyped-call]
        return self


class _Idle:
    """Stands in for a sample of a round that a worker sits out."""


def is_stateful(dataset: Any) -> bool:
    """Whether a stream's state says all that is needed to go on from it.

    `datasets` has no state for what lies in a shuffle buffer, so such a stream has to be replayed.
    """
    reads, writes = getattr(dataset, "state_dict", None), getattr(dataset, "load_state_dict", None)
    if not (callable(reads) and callable(writes)) or _asks(reads):
        return False
    return not _has_shuffle_buffer(getattr(dataset, "_ex_iterable", None))


def _asks(method: Callable[..., Any]) -> bool:
    """Whether a method cannot be called without arguments: such a state is for a loader of the library's own."""
    try:
        inspect.signature(method).bind()
    except TypeError:
        return True
    except ValueError:  # written in C
        return False
    return False


def _can_be_split(dataset: Any, processes: int) -> bool:
    """Whether each process can have shards of its own, as many as the others.

    Not of a data set with a length: shards may be of different ones, and each process would plan another run.
    """
    shards = getattr(dataset, "num_shards", 0) if hasattr(dataset, "shard") else 0
    return shards > 0 and shards % processes == 0 and not has_length(dataset)


def _has_shuffle_buffer(examples: Any) -> bool:
    if examples is None:
        return False
    if type(examples).__name__ == "BufferShuffledExamplesIterable":
        return True
    inner = [getattr(examples, "ex_iterable", None), *(getattr(examples, "ex_iterables", None) or ())]
    return any(_has_shuffle_buffer(part) for part in inner)


class Stream(IterableDataset[Any]):
    """An iterable data set as the training loader sees it.

    With several processes each one pulls the whole stream and keeps its slice of every round of
    ``world_size * batch_size`` samples, unless the data set has a multiple of as many shards.
    """

    def __init__(
        self, dataset: Any, seed: int, batch_size: int, *, drop_last: bool = False, rank: int = 0, world_size: int = 1
    ) -> None:
        self.split = 1
        """Processes that the data set itself is split over."""
        if world_size > 1 and _can_be_split(dataset, world_size):
            self.split = world_size
            dataset, rank, world_size = dataset.shard(num_shards=world_size, index=rank), 0, 1
        self.dataset = dataset
        self.seed = seed
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.stateful = is_stateful(dataset)
        self.opening = self.state()
        """Its own state before the first pass."""
        self.starts: dict[int, Start] = {}
        self.pulled = 0
        self.passing = 0
        """The epoch of the pass that samples were pulled from last."""
        self.ended = False
        """Whether that pass came to its end."""
        self.own: list[Any] = []
        self._passes = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Choose the pass that the next iteration is."""
        self.epoch = epoch
        self._passes = 0
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def state(self) -> dict[str, Any] | None:
        """The data set's own state behind the last sample pulled, if it has one that says all."""
        return self.dataset.state_dict() if self.stateful else None

    def leave_at(self, state: dict[str, Any]) -> None:
        """Leave the data set as a pass that ended in `state` does, so that the next pass begins as it would have.

        Most begin anew, whatever came before; some go on from where they stand. Which of the two is found out by
        pulling a few samples.
        """
        self._state_behind_one(state)
        next_pass = self._state_behind_one()
        if next_pass != self._state_behind_one(self.opening):
            self.dataset.load_state_dict(state)

    def _state_behind_one(self, state: dict[str, Any] | None = None) -> str:
        """Its state behind the first sample of a pass that begins in `state`, or where it happens to, as text."""
        if state is not None:
            self.dataset.load_state_dict(copy.deepcopy(state))
        self.own = owned_by(self.dataset)
        self._apart(lambda: next(iter(self.dataset), None), key_of(self.seed))
        return repr(self.state())  # states may hold arrays, which have no one answer to `==`

    def __iter__(self) -> Iterator[Any]:
        info = torch.utils.data.get_worker_info()
        worker = 0 if info is None else info.id
        # Persistent workers keep their copy of this object, which then has to count the passes itself.
        epoch = self.passing = self.epoch + self._passes
        if self._passes and hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        self._passes += 1
        start = self.starts.pop(worker, None) or Start()
        if start.idle_first:
            yield from [_Idle] * self.batch_size
        yield from self._slices(self._samples(start, epoch, worker))

    def _samples(self, start: Start, epoch: int, worker: int) -> Iterator[Any]:
        key = (self.seed, epoch, worker)
        skip = start.samples
        self.pulled, self.ended = 0, False
        if start.ended:
            self.pulled, self.ended = start.samples, True
            if start.state is not None:
                self.leave_at(start.state)
            return
        if start.state is not None:
            self.dataset.load_state_dict(start.state)
            self.pulled, skip = start.samples, 0
        if skip:
            logger.warning(
                f"Resuming: this stream has no state to go on from, so its first {skip:,} samples are pulled and "
                "dropped."
            )
        began = last = time.monotonic()
        self.own = owned_by(self.dataset)  # for each pass: `set_epoch` may have made new ones
        iterator = self._apart(lambda: iter(self.dataset), key_of(*key, _OPENING))
        while True:
            try:
                sample = self._apart(lambda: next(iterator), key_of(*key, self.pulled))
            except StopIteration:
                self.ended = True
                return
            self.pulled += 1
            if self.pulled > skip:
                yield sample
            elif self.pulled == skip:
                logger.warning(f"Resuming: dropped {skip:,} samples in {time.monotonic() - began:.1f} s.")
            elif (now := time.monotonic()) - last > 10:
                last = now
                left = (now - began) / self.pulled * (skip - self.pulled)
                logger.warning(f"Resuming: dropped {self.pulled:,} of {skip:,} samples, about {left:.0f} s left.")

    def _apart(self, work: Callable[[], Any], key: int, own: list[Any] | None = None) -> Any:
        # A sample of a stream cannot be pulled twice, so there is no finding out first whether it draws.
        before = mark()
        seed_streams(key)
        seed_owned(self.own if own is None else own, key)
        try:
            return work()
        finally:
            rewind(before)

    def _slices(self, samples: Iterator[Any]) -> Iterator[Any]:
        if self.world_size == 1:
            yield from samples
            return
        size = self.batch_size * self.world_size
        chunk: list[Any] = []
        for sample in samples:
            chunk.append(sample)
            if len(chunk) == size:
                yield from chunk[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
                chunk = []
        if chunk and not self.drop_last:
            # All processes must take part in every step; with fewer samples than processes one is used twice.
            each, extra = divmod(len(chunk), self.world_size)
            begin = self.rank * each + min(self.rank, extra)
            yield from chunk[begin : begin + each + (1 if self.rank < extra else 0)] or chunk[:1]


class StreamCollate:
    """Collates samples of a stream; in a worker it sends along what it takes to resume behind them."""

    def __init__(self, collator: Callable[[list[Any]], Any], stream: Stream) -> None:
        self.collator = collator
        self.stream = stream
        self.own = owned_by(collator)
        self._is_new = True

    def __call__(self, samples: list[Any]) -> Any:
        """Collate one micro-batch."""
        info = torch.utils.data.get_worker_info()
        worker = 0 if info is None else info.id
        if samples and samples[0] is _Idle:
            return Carried(_Idle, worker, 0, None)
        stream = self.stream
        key = key_of(stream.seed, stream.passing, worker, stream.pulled, _COLLATE)
        batch = self._collate(samples, key)
        return batch if info is None else Carried(batch, worker, stream.pulled, stream.state(), stream.ended)

    def _collate(self, samples: list[Any], key: int) -> Any:
        again = list(map(copy.copy, samples)) if self._is_new else []
        batch = self.stream._apart(lambda: self.collator(samples), key, self.own)
        if self._is_new:
            self._is_new = False
            known, self.own = len(self.own), owned_by(self.collator)
            if len(self.own) > known:  # made when it was first drawn from, so that one was not seeded
                batch = self.stream._apart(lambda: self.collator(again), key, self.own)
        return batch


@dataclass
class Track:
    """Follows the batches that leave the loader, to know where each worker's copy of the stream stands."""

    workers: int
    split: int = 1
    batches: int = 0
    in_turn: bool = True
    """Whether every batch came from the worker whose turn it was, that is, none has run dry."""
    samples: dict[int, int] = field(default_factory=dict)
    states: dict[int, dict[str, Any] | None] = field(default_factory=dict)
    ended: dict[int, bool] = field(default_factory=dict)

    def take(self, carried: Carried) -> Any:
        """Note a batch and unwrap it; returns `_Idle` for a round sat out."""
        if carried.batch is not _Idle:
            self.in_turn &= carried.worker == self.batches % self.workers
            self.batches += 1
            self.stand(carried.worker, carried.samples, carried.state, carried.ended)
        return carried.batch

    def stand(self, worker: int, samples: int, state: dict[str, Any] | None, ended: bool) -> None:
        """Note where the copy of the stream in a worker stands."""
        self.samples[worker], self.states[worker], self.ended[worker] = samples, state, ended

    def state_dict(self) -> dict[str, Any]:
        """What a later run needs to begin behind the last batch."""
        return {
            "workers": self.workers,
            "split": self.split,
            "batches": self.batches,
            "in_turn": self.in_turn,
            "samples": dict(self.samples),
            "states": dict(self.states),
            "ended": dict(self.ended),
        }

    def starts(self) -> dict[int, Start]:
        """Where each worker begins, so that the next batch is the one behind the last."""
        turn = self.batches % self.workers
        return {
            w: Start(self.samples.get(w, 0), self.states.get(w), self.ended.get(w, False), idle_first=w < turn)
            for w in range(self.workers)
        }


def is_idle(batch: Any) -> bool:
    """Whether this stands for a round that a worker sat out."""
    return batch is _Idle
