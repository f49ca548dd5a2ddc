"""A training loader, seen as epochs of micro-batches that a run can enter anywhere."""

from __future__ import annotations

import base64
import io
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from onward.agreement import Agreement
from onward.checkpoint import pickled
from onward.data.batches import Indices, MicroBatches
from onward.data.draws import (
    Streams,
    capture,
    from_plain,
    key_of,
    mark,
    moved,
    protected,
    restore,
    rewind,
    seed_streams,
    to_plain,
)
from onward.data.fetch import Samples
from onward.data.generators import restore_states, states_of
from onward.data.loader import Share, TrainLoader, adopt_loader
from onward.data.pieces import Limit, Pieces, cut
from onward.data.streams import Stream
from onward.errors import CheckpointMismatch

logger = logging.getLogger(__name__)


class Feed:
    """Gives the loop its micro-batches.

    Loaders that the user built are rebuilt from their parts where that is possible; any other iterable is taken as
    it is and replayed on resume.
    """

    def __init__(self, loader: Any, share: Share, move: Callable[[Any], Any] | None = None) -> None:
        """`loader`: what `get_train_dataloader` returned; `move` puts a batch on the training device, where it must."""
        self.share = share
        native = loader if isinstance(loader, TrainLoader) else adopt_loader(loader, share, move)
        self.loader: Any = loader if native is None else native
        self._native = native
        self._given = 0
        self._epoch = 0
        self._limit: Limit | None = None
        self._piece_weights: list[float] | None = None
        self._collates_again = False
        self._read_beside: Stream | None = None
        self._epoch_streams: Streams | None = None
        self._epoch_generators: list[Any] = []
        self._undrawn: list[Any] | None = None
        """Where the generators of the samplers stood behind the order of an epoch that was only entered at its end."""
        self._restored: dict[str, Any] | None = None
        self._loaded: dict[str, Any] | None = None
        """What was loaded, as long as no epoch was entered since."""

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Any]:
        """Iterate over the micro-batches of an epoch, leaving out the first `skip`."""
        if self._undrawn is not None:
            restore_states(self.loader, self._undrawn)
        restored, self._restored, self._loaded = self._restored, None, None
        self._undrawn = restored["generators"] if restored is not None and skip else None
        if restored is not None:
            # Samplers draw the order when the epoch begins: from the global generators, or from one of their own.
            if skip:
                restore(restored["epoch_streams"])
            restore_states(self.loader, restored["epoch_generators" if skip else "generators"])
        self._epoch = epoch
        self._epoch_streams, self._epoch_generators = capture(), states_of(self.loader)
        if self._native is None:
            _set_epoch(self.loader, epoch)
            batches = self._isolated(epoch)
            whole = batches if self._limit is None else map(_whole, batches)
            return self._counted(_drop(whole, skip), skip)
        return self._counted(self._enter(self._native, restored, skip), skip)

    def _enter(self, native: TrainLoader, restored: dict[str, Any] | None, skip: int) -> Iterable[Any]:
        state = None if restored is None else restored["stream"]
        if self._read_beside is not None:  # and put back by its state, in which another pass would begin
            self._read_beside.leave_at(self._read_beside.state() or {})
            self._read_beside = None
        if restored is not None and restored["epoch"] != self._epoch:  # whose last events were behind, too
            native.set_epoch(restored["epoch"])
            native.pass_over(state)
            state = None
        native.set_epoch(self._epoch)
        left = native.enter(skip, state)
        # Not yet `iter`: torch's loader draws from the global generator when it begins, which the first pull does.
        rest = _drop(native if self._limit is None else native.pieces(), left)
        return _as_many_everywhere(rest) if self.stream is not None and self.stream.split > 1 else rest

    def keep_epoch(self) -> None:
        """Let the data go on in the epoch that is being given out, though it was read beside the run."""
        if self._epoch_streams is not None and self._native is not None:
            self._native.set_epoch(self._epoch)
            self._read_beside = self.stream if self.stream is not None and self.stream.stateful else None

    @property
    def has_index(self) -> bool:
        """Whether the data is map-style, in a loader that can be entered anywhere without reading what lies before."""
        return self._native is not None and isinstance(self._native.dataset, Samples)

    @property
    def stream(self) -> Stream | None:
        """The stream behind the loader, where it is one that is known."""
        source = None if self._native is None else self._native.dataset
        return source if isinstance(source, Stream) else None

    def rewind_to_epoch(self) -> None:
        """Put all generators on the CPU back to where they stood when the epoch that is being given out began."""
        assert self._epoch_streams is not None
        restore(self._epoch_streams)
        restore_states(self.loader, self._epoch_generators)

    def draws_order(self) -> bool:
        """Whether the order of an epoch depends on where generators stand when it begins; moves them to find out."""
        if self._native is not None and not self.has_index:
            return False
        before, owned = mark(), states_of(self.loader)
        next(iter(self.loader if self._native is None else self._native.batch_sampler), None)  # type: ignore[arg-type]
        return moved(before) or states_of(self.loader) != owned

    def begin_as(self, state: dict[str, Any]) -> None:
        """Put the generators to where they stood at the begin of the epoch that `state_dict` wrote `state` in."""
        restore(from_plain(state["epoch_streams"]))
        restore_states(self.loader, state["epoch_generators"])

    def indices_of(self, back: int = 0) -> Indices | None:
        """Which samples a micro-batch was made of: the one given last, or the one given `back` before it.

        Goes through the order of the epoch again, so it is for words about an error. None where nobody knows: of
        streams, loaders of another kind, and micro-batches in pieces.
        """
        batches: Any = None if self._native is None else self._native.batch_sampler
        if not self.has_index or self._limit is not None:
            return None

        def again() -> Indices | None:
            self.rewind_to_epoch()
            batches.skip = self._given - 1 - back
            return next(iter(batches), None)

        kept = states_of(self.loader)
        try:
            return protected(again)
        finally:
            restore_states(self.loader, kept)

    @property
    def can_join(self) -> bool:
        """Whether micro-batches can be joined to larger ones: they are cut from the order of map-style data."""
        return self.has_index and isinstance(self.loader.batch_sampler, MicroBatches)

    def limit(self, limit: Limit) -> None:
        """Give out micro-batches as `Pieces` of at most `limit` samples, from the next epoch on."""
        self._limit = limit
        self._collates_again = self._native is not None and self._native.limit_pieces(limit)

    def join(self, count: int) -> None:
        """Give out `count` micro-batches as one `Pieces`, from the next epoch on."""
        assert self.can_join, "ask can_join first"
        self.loader.batch_sampler.together = count

    def sample_batch(self, indices: list[int]) -> Any:
        """Any samples as one micro-batch, beside the run: what it draws, the run will draw again."""
        assert self._native is not None
        return self._native.sample_batch(indices)

    def cut(self, pieces: Pieces, limit: int) -> Pieces:
        """The same micro-batch in pieces of at most `limit` samples: collated anew where its samples are known.

        Raises:
            DataError: it cannot be cut.
        """
        if max(pieces.sizes()) <= limit:
            return pieces
        if self._collates_again and pieces.indices is not None:
            assert self._native is not None
            return self._native.collate_again(pieces.indices, limit)
        smaller = Pieces(part for piece in pieces for part in cut(piece, limit))
        smaller.indices = pieces.indices
        return smaller

    def weigh_pieces(self, weights: list[float]) -> None:
        """Say what the pieces count for that the micro-batches given last were cut to."""
        self._piece_weights = weights

    def weights(self, count: int) -> list[float]:
        """What the mean losses of the `count` micro-batches given last, or of all their pieces, count for."""
        if self._piece_weights is not None and len(self._piece_weights) == count:
            return self._piece_weights
        return self.batch_weights(count)

    def batch_weights(self, count: int) -> list[float]:
        """What the mean losses of the `count` micro-batches given last count for, beside those of other processes."""
        batches = None if self._native is None else self._native.batch_sampler
        if self.share.world_size == 1 or not isinstance(batches, MicroBatches):
            return [1.0] * count
        return [batches.weight(number) for number in range(self._given - count, self._given)]

    def _counted(self, batches: Iterable[Any], skipped: int) -> Iterator[Any]:
        self._given, self._undrawn = skipped, None
        for batch in batches:
            self._given += len(batch.batches()) if isinstance(batch, Pieces) else 1
            self._piece_weights = None
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """What this process needs to enter the epoch again where it stands now, JSON-able."""
        if self._loaded is not None:
            return self._loaded
        stream = None if self._native is None else self._native.stream_state()
        return {
            "epoch": self._epoch,
            "epoch_streams": to_plain(self._epoch_streams or capture()),
            "epoch_generators": self._epoch_generators,
            "generators": states_of(self.loader) if self._undrawn is None else self._undrawn,
            "stream": None if stream is None else _pack(stream),
        }

    def load_state_dict(self, state: dict[str, Any], allow_mismatch: bool = False) -> None:
        """Prepare the next call of `epoch` to go on from `state`, which any process may have written.

        Raises:
            CheckpointMismatch: the stream was split over another number of processes, and `allow_mismatch` is false.
        """
        self._loaded = state
        packed = state["stream"]
        stream = None if packed is None else self._check_stream(_unpack(packed), allow_mismatch)
        if stream is not None and self._native is not None:
            self._native.keep_workers(stream["workers"])
        self._restored = {
            "epoch": state["epoch"],
            "epoch_streams": from_plain(state["epoch_streams"]),
            "epoch_generators": state.get("epoch_generators", []),
            "generators": state.get("generators", []),
            "stream": stream,
        }

    def _check_stream(self, stream: dict[str, Any], allow_mismatch: bool) -> dict[str, Any] | None:
        now = getattr(getattr(self._native, "dataset", None), "split", 1)
        if stream["split"] == now and not (allow_mismatch and stream["workers"] != max(1, self.loader.num_workers)):
            return stream
        if allow_mismatch:
            return None
        raise CheckpointMismatch(
            f"This checkpoint cannot be resumed exactly: its stream was split into {stream['split']} shards, one for "
            f"each process, and would be split into {now} now, so samples would be lost and repeated. Start as many "
            "processes as before, or pass allow_resume_mismatch=True to go on from about the same place."
        )

    def _isolated(self, epoch: int) -> Iterator[Any]:
        # The first batch comes from the stream as it is, because samplers draw the order there.
        iterator = iter(self.loader)
        number = 0
        while True:
            before = mark()
            if number:
                seed_streams(key_of(self.share.seed, epoch, number, self.share.rank))
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                if number:
                    rewind(before)
            number += 1
            yield batch


def _whole(batch: Any) -> Pieces:
    return Pieces([batch])


def _pack(state: dict[str, Any]) -> str:
    """Text form of a stream's state, which may hold tensors."""
    buffer = io.BytesIO()
    pickled.write(state, buffer, "the state of the train_dataset")
    return base64.b64encode(buffer.getvalue()).decode()


def _unpack(text: str) -> dict[str, Any]:
    state: dict[str, Any] = pickled.read(base64.b64decode(text))
    return state


def _drop(batches: Iterable[Any], count: int) -> Iterable[Any]:
    """`batches` without the first `count` of them, which are pulled when the first one is asked for."""
    return _dropped(batches, count) if count else batches


def _dropped(batches: Iterable[Any], count: int) -> Iterator[Any]:
    rest = iter(batches)
    logger.warning(
        "Resuming: this data cannot be entered in the middle, so %s micro-batches are pulled and dropped.", f"{count:,}"
    )
    begin = last = time.monotonic()
    for number in range(1, count + 1):
        if next(rest, None) is None:
            return
        now = time.monotonic()
        if now - last > 10:
            last = now
            left = (now - begin) / number * (count - number)
            logger.warning("Resuming: dropped %s of %s micro-batches, about %.0f s left.", number, count, left)
    logger.warning("Resuming: dropped %s micro-batches in %.1f s.", count, time.monotonic() - begin)
    yield from rest


def _as_many_everywhere(batches: Iterable[Any]) -> Iterator[Any]:
    """As many of `batches` as every process has: the others would wait for ever for one whose shards are shorter."""
    agreement, rest = Agreement.open(), iter(batches)
    try:
        while True:
            batch = next(rest, None)
            (is_over,) = agreement.largest(batch is None)
            if is_over:
                return
            yield batch
    finally:
        agreement.close()


def _set_epoch(loader: Any, epoch: int) -> None:
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)
    inner: Any = getattr(getattr(loader, "batch_sampler", None), "batch_sampler", None)
    if hasattr(inner, "set_epoch"):
        inner.set_epoch(epoch)
