"""The training loader: a torch `DataLoader` that can be entered anywhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler

from onward.data.ahead import Transfer, one_ahead
from onward.data.batches import GivenBatches, Indices, MicroBatches
from onward.data.draws import protected
from onward.data.fetch import Collate, Samples
from onward.data.order import EpochShuffle, has_length
from onward.data.pieces import Limit, Pieces
from onward.data.streams import Carried, Start, Stream, StreamCollate, Track, is_idle

logger = logging.getLogger(__name__)

_WORKER_OPTIONS = (
    "num_workers",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
    "persistent_workers",
    "in_order",
)


@dataclass(frozen=True)
class Share:
    """Which part of the data this process trains on, and in what order."""

    seed: int
    """Seed of the data order and of draws inside the data set."""
    rank: int = 0
    world_size: int = 1


class TrainLoader(DataLoader[Any]):
    """Micro-batches of one process, epoch after epoch, from any micro-batch on.

    Samples draw random numbers that depend on (seed, epoch, position) alone; indices that are skipped are not fetched.
    """

    def __init__(self, dataset: Samples | Stream, *, move: Callable[[Any], Any] | None = None, **options: Any) -> None:
        """`move` puts a batch on the training device; `options` are `DataLoader`'s."""
        super().__init__(dataset, **options)
        self.move = move
        self._track = self._new_track()
        self._entered: Track | None = None
        """The track of an epoch that was entered and not begun yet; an iteration beside the run has one of its own."""

    @property
    def total_batch_size(self) -> int:
        """Samples per micro-batch over all processes, as accelerate's loaders say it."""
        source: Any = self.dataset if isinstance(self.dataset, Stream) else self.batch_sampler
        return int(source.batch_size or 1) * int(getattr(source, "world_size", 1))

    @property
    def total_dataset_length(self) -> int:
        """Samples in the data set, as accelerate's loaders say it."""
        return len(self.dataset)  # type: ignore[arg-type]

    def __len__(self) -> int:
        """Micro-batches of this process in one epoch.

        Raises:
            TypeError: the data is a stream without a length.
        """
        if not isinstance(self.dataset, Stream):
            return super().__len__()
        rounds, rest = divmod(len(self.dataset), self.total_batch_size)
        return rounds + (1 if rest and not self.drop_last else 0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        source = self.dataset if isinstance(self.dataset, Stream) else self.batch_sampler
        source.set_epoch(epoch)  # type: ignore[union-attr]
        data = self.dataset.dataset  # type: ignore[attr-defined]
        if isinstance(self.dataset, Samples) and hasattr(data, "set_epoch"):
            data.set_epoch(epoch)

    def enter(self, batches: int, stream_state: dict[str, Any] | None = None) -> int:
        """Make the next iteration begin behind `batches` micro-batches of the epoch.

        Args:
            batches: micro-batches of this process to leave out.
            stream_state: what `stream_state()` returned there, for a stream.

        Returns:
            How many micro-batches the caller still has to pull and drop (0 unless loader workers had run dry).
        """
        if not isinstance(self.dataset, Stream):
            self.batch_sampler.skip = batches  # type: ignore[union-attr]
            return 0
        # What an entry behind the last batch left, from which nothing was pulled, goes.
        self._track, self.dataset.starts = self._new_track(), {}
        left = self._start_behind(batches, stream_state) if batches else 0
        self._entered = self._track
        return left

    def _start_behind(self, batches: int, stream_state: dict[str, Any] | None) -> int:
        workers, stream = max(1, self.num_workers), cast("Stream", self.dataset)
        if has_length(self) and batches >= len(self):
            self.pass_over(stream_state)
        if stream_state is None and workers == 1:
            stream.starts = {0: Start(batches * stream.batch_size * stream.world_size)}
            return 0
        if stream_state is None or not stream_state["in_turn"]:
            return batches
        self._track = Track(**stream_state)
        stream.starts = self._track.starts()
        if workers == 1:
            stream.starts[0].idle_first = False
        return 0

    def pass_over(self, stream_state: dict[str, Any] | None) -> None:
        """Stand behind a pass that ended in `stream_state`, as the run that wrote it did."""
        stream = self.dataset
        # Workers get the data set as it is in this process, where no pass has moved it.
        if isinstance(stream, Stream) and not self.num_workers and stream_state is not None:
            state = stream_state["states"].get(0)
            if stream.stateful and state is not None:
                stream.leave_at(state)

    def keep_workers(self, workers: int) -> None:
        """Go on with as many workers as a stream's run had: the order that they share out depends on that."""
        if workers == max(1, self.num_workers):
            return
        logger.warning(
            "Resuming: the order of this stream depends on the number of loader workers, so the run goes on with the "
            "%d that it began with, not %d. Pass allow_resume_mismatch=True to change it; samples are then lost or "
            "repeated.", workers, self.num_workers,
        )  # fmt: skip
        self.num_workers = workers
        self.prefetch_factor = self.prefetch_factor or 2

    def _new_track(self) -> Track:
        return Track(max(1, self.num_workers), getattr(self.dataset, "split", 1))

    def stream_state(self) -> dict[str, Any] | None:
        """What `enter` needs to begin behind the last micro-batch given out; `None` for data with an index."""
        stream = self.dataset
        if not isinstance(stream, Stream):
            return None
        if not self.num_workers:
            self._track.stand(0, stream.pulled, stream.state(), stream.ended)
        return self._track.state_dict()

    def limit_pieces(self, limit: Limit) -> bool:
        """From now on let `pieces` cut micro-batches to `limit`; returns whether they are collated anew for it."""
        if not isinstance(self.collate_fn, Collate):
            return False
        self.collate_fn.limit = limit
        return True

    def collate_again(self, indices: Any, limit: int) -> Pieces:
        """A micro-batch that was given out, fetched anew and in pieces of at most `limit` samples."""
        assert isinstance(self.collate_fn, Collate)
        again: Pieces = self._moved(self.collate_fn.again(indices, limit))
        return again

    def sample_batch(self, indices: list[int]) -> Any:
        """These samples as one micro-batch, beside the run: no generator is moved by it."""
        assert isinstance(self.collate_fn, Collate)
        samples, collator = self.collate_fn.samples, self.collate_fn.collator
        batch = protected(lambda: collator(samples.plain(Indices(indices))))
        return batch if self.move is None else self.move(batch)

    def pieces(self) -> Iterator[Pieces]:
        """Iterate as always, but over micro-batches as `Pieces`."""
        yield from self._on_device(map(_as_pieces, self._batches()))

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches = self._on_device(self._batches())
        in_pieces = isinstance(self.collate_fn, Collate) and self.collate_fn.limit is not None
        return chain.from_iterable(map(_as_pieces, batches)) if in_pieces else batches

    def _on_device(self, batches: Iterator[Any]) -> Iterator[Any]:
        # Of a stream nothing is pulled ahead: its state has to be that behind the batch given out last.
        if isinstance(self.move, Transfer) and isinstance(self.dataset, Samples):
            return one_ahead(batches, Piecewise(self.move))
        return batches if self.move is None else map(self._moved, batches)

    def _moved(self, batch: Any) -> Any:
        if self.move is None:
            return batch
        return batch.each(self.move) if isinstance(batch, Pieces) else self.move(batch)

    def _batches(self) -> Iterator[Any]:
        # No generator around the batches of map-style data: each one that they pass through costs a microsecond.
        return self._tracked() if isinstance(self.dataset, Stream) else super().__iter__()

    def _tracked(self) -> Iterator[Any]:
        # Behind the last batch the track stays: a step that is short of batches has met the end before it is saved.
        track, self._entered = self._entered or self._new_track(), None
        batches = super().__iter__()
        if self.num_workers:
            self.dataset.starts = {}  # type: ignore[attr-defined]  # the workers have theirs; the next epoch has none
        for batch in batches:
            if isinstance(batch, Carried):
                batch = track.take(batch)
                if is_idle(batch):
                    continue
            else:
                track.batches += 1
            yield batch


class Piecewise(Transfer):
    """Moves a batch by `inner`; `Pieces` piece by piece."""

    def __init__(self, inner: Transfer) -> None:
        self.inner = inner

    def start(self, batch: Any) -> Any:
        """Begin to move all pieces."""
        return batch.each(self.inner.start) if isinstance(batch, Pieces) else self.inner.start(batch)

    def finish(self, started: Any) -> Any:
        """The moved pieces."""
        return started.each(self.inner.finish) if isinstance(started, Pieces) else self.inner.finish(started)


def _as_pieces(batch: Any) -> Pieces:
    return batch if isinstance(batch, Pieces) else Pieces([batch])


def build_loader(
    dataset: Any,
    collator: Callable[[list[Any]], Any],
    sampler: Sampler[Any] | None,
    share: Share,
    *,
    batch_size: int,
    drop_last: bool = False,
    **options: Any,
) -> TrainLoader:
    """Make the training loader.

    Args:
        dataset: map-style or iterable data.
        collator: list of samples → batch.
        sampler: order of the indices, the same on every process, or batches of indices made for this one; `None` for
            iterable data.
        share: which part of the data is this process's.
        batch_size: samples per micro-batch and process.
        drop_last: leave out the samples at the end of an epoch that do not fill a micro-batch on every process.
        options: of `TrainLoader`: `move`, and those of `DataLoader` for its workers.
    """
    if isinstance(dataset, IterableDataset):
        stream = Stream(
            dataset, share.seed, batch_size, drop_last=drop_last, rank=share.rank, world_size=share.world_size
        )
        return TrainLoader(
            stream, batch_size=batch_size, drop_last=drop_last,
            collate_fn=StreamCollate(collator, stream), **options,
        )  # fmt: skip
    samples = Samples(dataset, share.seed)
    if isinstance(sampler, BatchSampler) or hasattr(sampler, "effective_batch_size"):
        batches: Any = GivenBatches(cast("Sampler[list[int]]", sampler), rank=share.rank)
    else:
        if isinstance(sampler, RandomSampler) and not isinstance(sampler, EpochShuffle):
            sampler = EpochShuffle(sampler, share.seed)
        order: Any = sampler if sampler is not None else range(len(dataset))
        batches = MicroBatches(order, batch_size, drop_last=drop_last, rank=share.rank, world_size=share.world_size)
    return TrainLoader(samples, batch_sampler=batches, collate_fn=Collate(collator, samples), **options)


def adopt_loader(loader: Any, share: Share, move: Callable[[Any], Any] | None) -> TrainLoader | None:
    """Rebuild a plain `DataLoader` that the user made, so that a run can enter it anywhere.

    Returns `None` for anything whose iteration may be more than its parts (a subclass, a custom iterable, batches made
    by the data set itself, one process dispatching to the others).
    """
    base = getattr(loader, "base_dataloader", loader)  # accelerate's wrapper
    # accelerate lets one process read streams for all, which is nothing of its own where there is only one.
    alone = ("DataLoaderDispatcher",) if share.world_size == 1 else ()
    if type(base) is not DataLoader or type(loader).__name__ not in ("DataLoader", "DataLoaderShard", *alone):
        return None
    if base.batch_size is None and base.batch_sampler is None:
        return None
    options = {name: getattr(base, name) for name in _WORKER_OPTIONS}
    if base.generator is not None:
        options["generator"] = base.generator
    if isinstance(base.dataset, IterableDataset):
        stream = Stream(base.dataset, share.seed, base.batch_size or 1)
        return TrainLoader(
            stream, move=move, batch_size=base.batch_size, drop_last=base.drop_last,
            collate_fn=StreamCollate(base.collate_fn, stream), **options,
        )  # fmt: skip
    samples = Samples(base.dataset, share.seed)
    batches: Any = GivenBatches(cast("Sampler[list[int]]", base.batch_sampler), rank=share.rank)
    return TrainLoader(
        samples, move=move, batch_sampler=batches, collate_fn=Collate(base.collate_fn, samples), **options
    )


def order_seed(data_seed: int | None) -> int:
    """The seed of the data order: `data_seed`, else the seed that torch's global generator was last given."""
    return torch.random.initial_seed() if data_seed is None else data_seed
