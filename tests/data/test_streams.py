"""Streams can be entered behind any batch, with their state or by replay, with and without workers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils.pin_memory import pin_memory

from onward.data.feed import Feed
from onward.data.loader import Share, TrainLoader, build_loader
from onward.data.pieces import Pieces
from onward.data.streams import Carried, is_stateful
from onward.errors import CheckpointMismatch

SHARE = Share(seed=11)


class Numbers(IterableDataset[float]):
    """0, 1, 2 … with noise, split over workers."""

    def __init__(self, size: int) -> None:
        self.size, self.pulled = size, 0

    def __iter__(self) -> Iterator[float]:
        info = get_worker_info()
        start, step = (0, 1) if info is None else (info.id, info.num_workers)
        shift = random.random()
        for number in range(start, self.size, step):
            self.pulled += 1
            yield number + shift + torch.rand(()).item()


class Stateful(IterableDataset[float]):
    """The same, with a state."""

    def __init__(self, size: int) -> None:
        self.size, self.at, self.pulled, self._loaded = size, 0, 0, False

    def __iter__(self) -> Iterator[float]:
        info = get_worker_info()
        start, step = (0, 1) if info is None else (info.id, info.num_workers)
        if not self._loaded:
            self.at = start
        self._loaded = False
        while self.at < self.size:
            number, self.at = self.at, self.at + step
            self.pulled += 1
            yield number + torch.rand(()).item()

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at, self._loaded = state["at"], True


def loader_of(dataset: IterableDataset[Any], workers: int) -> TrainLoader:
    return build_loader(dataset, torch.tensor, None, SHARE, batch_size=3, num_workers=workers)


def same(batch: Any) -> Any:
    return batch


def epoch(dataset: IterableDataset[Any], workers: int, number: int = 1) -> list[list[float]]:
    return [b.tolist() for b in Feed(loader_of(dataset, workers), SHARE, same).epoch(number)]


@pytest.mark.parametrize("kind", [Numbers, Stateful])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_entering_behind_every_batch(kind: type, workers: int) -> None:
    size = 25
    whole = epoch(kind(size), workers)
    feed = Feed(loader_of(kind(size), workers), SHARE, same)
    batches = feed.epoch(1)
    for done in range(1, len(whole) + 1):
        assert next(batches).tolist() == whole[done - 1]
        if workers and done % 3:  # starting workers takes a while
            continue
        state = feed.state_dict()
        torch.rand(3), random.random()
        later = Feed(loader_of(kind(size), workers), SHARE, same)
        later.load_state_dict(state)
        assert [b.tolist() for b in later.epoch(1, skip=done)] == whole[done:]


def test_an_iteration_beside_the_run_leaves_its_place_alone() -> None:
    feed = Feed(loader_of(Stateful(25), 2), SHARE, same)
    batches = feed.epoch(1)
    next(batches), next(batches), next(batches)
    place = feed.state_dict()
    assert len(list(feed.loader)) == 9  # 5 of one worker, 4 of the other
    assert feed.state_dict() == place


def test_a_stream_with_a_state_is_not_replayed() -> None:
    feed = Feed(loader_of(Stateful(100), 0), SHARE, same)
    batches = feed.epoch(0)
    for _ in range(30):
        next(batches)
    state = feed.state_dict()
    data = Stateful(100)
    later = Feed(loader_of(data, 0), SHARE, same)
    later.load_state_dict(state)
    assert len(list(later.epoch(0, skip=30))) == 4
    assert data.pulled == 10


def test_a_stream_without_a_state_is_replayed(caplog: pytest.LogCaptureFixture) -> None:
    data = Numbers(100)
    whole = epoch(Numbers(100), 0)
    later = Feed(loader_of(data, 0), SHARE, same)
    assert [b.tolist() for b in later.epoch(1, skip=30)] == whole[30:]
    assert data.pulled == 100
    assert "its first 90 samples are pulled and dropped" in caplog.text
    assert "dropped 90 samples in 0.0 s" in caplog.text


class AsksForPlace(Stateful):
    """Has a state that a loader of its own library has to ask for."""

    def state_dict(self, num_samples: int) -> dict[str, Any]:  # type: ignore[override]
        return {"at": num_samples}


def test_a_state_that_has_to_be_asked_for_with_arguments_is_left_alone() -> None:
    assert not is_stateful(AsksForPlace(9))
    assert len(epoch(AsksForPlace(9), 0)) == 3


class Sized(Numbers):
    """Knows its length."""

    def __len__(self) -> int:
        return self.size


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_stream_with_a_length_has_as_many_batches_as_it_gives(world: int, drop_last: bool) -> None:
    for size in (1, 5, 12, 13, 23):
        for rank in range(world):
            share = Share(11, rank, world)
            loader = build_loader(Sized(size), torch.tensor, None, share, batch_size=2, drop_last=drop_last)
            assert len(loader) == len(list(Feed(loader, share, same).epoch(0))), (size, rank)
    with pytest.raises(TypeError):
        len(loader_of(Numbers(9), 0))


def test_shards_of_a_stream_with_a_length_are_not_taken_for_processes() -> None:
    class Sharded(Sized):
        num_shards = 4

        def shard(self, num_shards: int, index: int) -> Sized:
            return Sized(self.size // num_shards + (index == 0))

    loaders = [build_loader(Sharded(9), torch.tensor, None, Share(11, rank, 2), batch_size=2) for rank in range(2)]
    assert [len(loader) for loader in loaders] == [3, 3]


class Ongoing(Stateful):
    """A pass goes on where the last one ended."""

    def __iter__(self) -> Iterator[float]:
        while self.at < self.size:
            self.at += 1
            yield float(self.at)


@pytest.mark.parametrize("kind", [Stateful, Ongoing])
def test_a_pass_behind_a_checkpoint_begins_where_it_would_have(kind: type) -> None:
    feed = Feed(loader_of(kind(20), 0), SHARE, same)
    first = feed.epoch(0)
    next(first), next(first)
    state = feed.state_dict()
    wanted = next(feed.epoch(1)).tolist()
    later = Feed(loader_of(kind(20), 0), SHARE, same)
    later.load_state_dict(state)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    batches = later.epoch(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert next(batches).tolist() == wanted


def test_a_feed_that_has_not_begun_yet_stands_where_it_was_put() -> None:
    feed = Feed(loader_of(Stateful(20), 0), SHARE, same)
    first = feed.epoch(0)
    next(first), next(first)
    state = feed.state_dict()
    later = Feed(loader_of(Stateful(20), 0), SHARE, same)
    later.load_state_dict(state)
    assert later.state_dict() == state
    next(later.epoch(0, skip=2))
    assert later.state_dict()["stream"] != state["stream"]


def test_passes_differ_and_the_next_one_starts_anew() -> None:
    feed = Feed(loader_of(Stateful(9), 0), SHARE, same)
    first, second = ([b.tolist() for b in feed.epoch(n)] for n in (0, 1))
    assert first != second
    assert len(first) == len(second) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_of_datasets(workers: int) -> None:
    datasets = pytest.importorskip("datasets")

    def stream(shuffled: bool) -> Any:
        data = datasets.Dataset.from_dict({"x": list(range(40))}).to_iterable_dataset(num_shards=4)
        return data.shuffle(seed=1, buffer_size=8) if shuffled else data

    def collate(samples: list[dict[str, int]]) -> list[int]:
        return [s["x"] for s in samples]

    def feed_of(shuffled: bool) -> Feed:
        return Feed(
            build_loader(stream(shuffled), collate, None, SHARE, batch_size=3, num_workers=workers), SHARE, same
        )

    assert is_stateful(stream(False))
    assert not is_stateful(stream(True))
    for shuffled in (False, True):
        whole = list(feed_of(shuffled).epoch(2))
        assert sorted(x for b in whole for x in b) == list(range(40))
        feed = feed_of(shuffled)
        batches = feed.epoch(2)
        for _ in range(5):
            next(batches)
        later = feed_of(shuffled)
        later.load_state_dict(feed.state_dict())
        assert list(later.epoch(2, skip=5)) == whole[5:]


def test_persistent_workers_count_their_passes() -> None:
    loader = build_loader(Numbers(12), torch.tensor, None, SHARE, batch_size=3, num_workers=1, persistent_workers=True)
    feed = Feed(loader, SHARE, same)
    passes = [[b.tolist() for b in feed.epoch(n)] for n in (0, 1)]
    assert passes == [epoch(Numbers(12), 1, n) for n in (0, 1)]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_a_stream(world: int) -> None:
    ranks = []
    for rank in range(world):
        share = Share(11, rank, world)
        loader = build_loader(Numbers(23), torch.tensor, None, share, batch_size=2)
        ranks.append([b.tolist() for b in Feed(loader, share, same).epoch(0)])
    alone = [
        b.tolist()
        for b in Feed(build_loader(Numbers(23), torch.tensor, None, SHARE, batch_size=2), SHARE, same).epoch(0)
    ]
    assert sorted(x for rank in ranks for b in rank for x in b) == sorted(x for b in alone for x in b)


def on_ranks(kind: type, world: int, workers: int) -> list[Feed]:
    """The feeds of all ranks; together they take six samples at a time."""
    shares = [Share(11, rank, world) for rank in range(world)]
    options: dict[str, Any] = {"batch_size": 6 // world, "num_workers": workers}
    return [Feed(build_loader(kind(42), torch.tensor, None, share, **options), share, same) for share in shares]


def rounds(feeds: list[Feed], skip: int = 0) -> Iterator[list[float]]:
    """What all ranks together take, step after step."""
    for batches in zip(*(feed.epoch(1, skip) for feed in feeds), strict=True):
        yield [number for batch in batches for number in batch.tolist()]


@pytest.mark.parametrize("kind", [Numbers, Stateful])
@pytest.mark.parametrize("workers", [0, 2])
def test_another_number_of_ranks_goes_on_in_the_same_order(kind: type, workers: int) -> None:
    whole = list(rounds(on_ranks(kind, 1, workers)))
    feeds, done = on_ranks(kind, 1, workers), 0
    for world in (2, 1, 2):
        steps = rounds(feeds, done)
        assert [next(steps), next(steps)] == whole[done : done + 2]
        done += 2
        state = feeds[0].state_dict()
        feeds = on_ranks(kind, world, workers)
        for feed in feeds:
            feed.load_state_dict(state)
    rest = [number for step in rounds(feeds, done) for number in step]
    assert sorted(rest) == sorted(number for step in whole[done:] for number in step)


def test_a_stream_that_was_split_over_ranks_is_refused_by_another_number_of_them() -> None:
    datasets = pytest.importorskip("datasets")

    def feed_of(world: int) -> Feed:
        data = datasets.Dataset.from_dict({"x": list(range(40))}).to_iterable_dataset(num_shards=4)
        share = Share(11, 0, world)
        return Feed(build_loader(data, lambda s: [x["x"] for x in s], None, share, batch_size=2), share, same)

    feed = feed_of(2)
    next(feed.epoch(0))
    state = feed.state_dict()
    feed_of(2).load_state_dict(state)
    with pytest.raises(CheckpointMismatch, match=r"(?s)into 2 shards.*into 1 now.*allow_resume_mismatch=True"):
        feed_of(1).load_state_dict(state)
    feed_of(1).load_state_dict(state, allow_mismatch=True)


def test_the_number_of_workers_that_share_out_a_stream_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    whole = epoch(Stateful(25), 2)
    feed = Feed(loader_of(Stateful(25), 2), SHARE, same)
    batches = feed.epoch(1)
    assert [next(batches).tolist() for _ in range(3)] == whole[:3]
    later = Feed(loader_of(Stateful(25), 0), SHARE, same)
    later.load_state_dict(feed.state_dict())
    assert [b.tolist() for b in later.epoch(1, skip=3)] == whole[3:]
    assert "goes on with the 2 that it began with, not 0" in caplog.text


def test_the_number_of_workers_is_kept_also_by_a_run_that_is_resumed_twice() -> None:
    whole = epoch(Stateful(25), 2)
    feed = Feed(loader_of(Stateful(25), 2), SHARE, same)
    next(feed.epoch(0))
    later = Feed(loader_of(Stateful(25), 0), SHARE, same)
    later.load_state_dict(feed.state_dict())
    batches = later.epoch(1)
    assert [next(batches).tolist() for _ in range(3)] == whole[:3]
    last = Feed(loader_of(Stateful(25), 0), SHARE, same)
    last.load_state_dict(later.state_dict())
    assert [b.tolist() for b in last.epoch(1, skip=3)] == whole[3:]


def test_loaders_of_the_user_are_rebuilt_or_replayed() -> None:
    from torch.utils.data import DataLoader, TensorDataset

    def build(custom: bool) -> Any:
        torch.manual_seed(5)
        data = TensorDataset(torch.arange(20))
        loader = DataLoader(
            data, batch_size=3, shuffle=True, collate_fn=lambda s: [x[0].item() + torch.rand(()).item() for x in s]
        )
        return Wrapped(loader) if custom else loader

    class Wrapped:
        def __init__(self, loader: Any) -> None:
            self.loader = loader

        def __iter__(self) -> Iterator[Any]:
            return iter(self.loader)

    for custom in (False, True):
        whole_feed = Feed(build(custom), SHARE, same)
        whole = list(whole_feed.epoch(0))
        feed = Feed(build(custom), SHARE, same)
        batches = feed.epoch(0)
        assert [next(batches), next(batches)] == whole[:2]
        state = feed.state_dict()
        later = Feed(build(custom), SHARE, same)
        torch.manual_seed(99)
        later.load_state_dict(state)
        assert list(later.epoch(0, skip=2)) == whole[2:]


class Pinnable:
    """Says whether it was page-locked, which real tensors can only be where there is an accelerator."""

    pinned = False

    def pin_memory(self) -> Pinnable:
        self.pinned = True
        return self


def test_batches_from_workers_are_page_locked_also_in_their_wrappers() -> None:
    carried = pin_memory(Carried({"x": Pinnable()}, 0, 4, None))
    assert carried.batch["x"].pinned
    assert (carried.worker, carried.samples) == (0, 4)
    pieces = Pieces([{"x": Pinnable()}, {"x": Pinnable()}])
    pieces.indices = "where they stand"
    pinned = pin_memory(pieces)
    assert [piece["x"].pinned for piece in pinned] == [True, True]
    assert pinned.indices == "where they stand"
