"""Draws inside a data set are a function of (seed, epoch, position), and leave the process's own stream alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, SequentialSampler, TensorDataset

from onward.data import draws
from onward.data.batches import Indices
from onward.data.draws import capture, key_of, mark, moved, protected, restore, rewind, seed_streams
from onward.data.feed import Feed
from onward.data.fetch import Collate, Samples, never_draws
from onward.data.loader import Share, build_loader


class Augmented(Dataset[dict[str, torch.Tensor]]):
    """Adds noise from one of the global generators."""

    def __init__(self, source: str, size: int = 10) -> None:
        self.source, self.size, self.pulled = source, size, []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.pulled.append(index)
        draw = {
            "torch": lambda: torch.rand(()).item(),
            "python": random.random,
            "numpy": lambda: float(np.random.rand()),
        }
        return {"x": torch.tensor(index + draw[self.source]())}


def stack(samples: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.stack([s["x"] for s in samples])


SOURCES = pytest.mark.parametrize("source", ["torch", "python", "numpy"])


@pytest.fixture(params=["in memory", "asked for"])
def reads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets generators be read in their memory, or asked for their states as where the memory is not known."""
    assert draws._TORCH_MEMORY is not None
    assert draws._PYTHON_MEMORY is not None
    if request.param == "asked for":
        monkeypatch.setattr(draws, "_TORCH_MEMORY", None)
        monkeypatch.setattr(draws, "_PYTHON_MEMORY", None)


@SOURCES
@pytest.mark.usefixtures("reads")
def test_a_mark_tells_a_draw_and_rewinds_it(source: str) -> None:
    draw = {"torch": lambda: torch.rand(1), "python": random.random, "numpy": lambda: np.random.rand(1)}[source]
    before = mark()
    assert not moved(before)
    first = draw()
    assert moved(before)
    rewind(before)
    assert not moved(before)
    assert draw() == first


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.usefixtures("reads")
def test_the_second_of_a_pair_of_normal_numbers_is_a_draw_too(dtype: torch.dtype) -> None:
    torch.randn(1, dtype=dtype)
    before = mark()
    second = torch.randn(1, dtype=dtype)
    assert moved(before)
    expected = torch.rand(4)
    rewind(before)
    assert torch.equal(torch.randn(1, dtype=dtype), second)
    assert torch.equal(torch.rand(4), expected)


def test_memory_that_is_not_all_of_a_generator_is_not_taken_for_it() -> None:
    generator = torch.Generator().manual_seed(3)
    whole = draws._torch_memory(generator)
    assert whole is not None
    assert draws._holds_all(whole, generator)
    assert not draws._holds_all(whole[: -draws._TORCH_TAIL], generator)  # kept normal numbers lie there
    assert not draws._holds_all(memoryview(bytearray(len(whole))), generator)


def test_a_mark_and_a_state_say_the_same() -> None:
    before, state = mark(), torch.get_rng_state()
    torch.rand(700)  # words of two rounds
    rewind(before)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    torch.set_rng_state(state)
    assert not moved(before)


def test_protected_work_leaves_every_stream_as_it_was() -> None:
    streams = capture()
    protected(lambda: (torch.rand(3), random.random(), np.random.randn(3)))
    after = capture()
    assert torch.equal(streams[0], after[0])
    assert streams[1] == after[1]
    assert all(np.array_equal(a, b) for a, b in zip(streams[2], after[2], strict=True))


def test_restore_brings_back_the_draws() -> None:
    streams = capture()
    drawn = torch.rand(2).tolist(), random.random(), np.random.randn(3).tolist()
    restore(streams)
    assert drawn == (torch.rand(2).tolist(), random.random(), np.random.randn(3).tolist())


def test_keys_of_neighbours_differ() -> None:
    keys = {key_of(seed, epoch, position) for seed in range(5) for epoch in range(5) for position in range(5)}
    assert len(keys) == 125


@SOURCES
def test_the_same_draws_whoever_fetches(source: str) -> None:
    def epoch(workers: int, skip: int = 0) -> list[float]:
        data = Augmented(source)
        loader = build_loader(data, stack, SequentialSampler(data), Share(7), batch_size=2, num_workers=workers)
        loader.set_epoch(1)
        loader.enter(skip)
        return torch.cat(list(loader)).tolist()

    here = epoch(0)
    torch.rand(5), random.random(), np.random.rand(3)  # the stream of the process stands elsewhere now
    assert epoch(0) == here
    assert epoch(2) == here
    assert epoch(0, skip=2) == here[4:]
    assert epoch(1, skip=2) == here[4:]


@SOURCES
def test_another_split_of_the_batch_draws_the_same(source: str) -> None:
    def epoch(batch_size: int) -> list[float]:
        data = Augmented(source)
        return torch.cat(
            list(build_loader(data, stack, SequentialSampler(data), Share(7), batch_size=batch_size))
        ).tolist()

    assert epoch(1) == epoch(4) == epoch(10)


@SOURCES
def test_the_stream_of_the_model_is_not_moved(source: str) -> None:
    def stream_after(data: Dataset[dict[str, torch.Tensor]]) -> tuple[float, float, float]:
        seed_streams(3)
        for _ in build_loader(data, stack, SequentialSampler(data), Share(7), batch_size=2):  # type: ignore[arg-type]
            pass
        return torch.rand(()).item(), random.random(), float(np.random.rand())

    class Plain(Augmented):
        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"x": torch.tensor(float(index))}

    assert stream_after(Augmented(source)) == stream_after(Plain(source))


def test_an_epoch_draws_anew() -> None:
    data = Augmented("torch")
    loader = build_loader(data, stack, SequentialSampler(data), Share(7), batch_size=5)
    loader.set_epoch(0)
    first = torch.cat(list(loader))
    loader.set_epoch(1)
    assert not torch.equal(first, torch.cat(list(loader)))


def test_a_data_set_that_draws_is_fetched_twice_only_once() -> None:
    data = Augmented("torch")
    list(build_loader(data, stack, SequentialSampler(data), Share(7), batch_size=2))
    assert data.pulled == [0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_collator_that_draws_and_pops_keys() -> None:
    def mask(samples: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        return torch.stack([s.pop("x") for s in samples]) * (torch.rand(len(samples)) > 0.5)

    class Held(Augmented):
        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            return {"x": torch.tensor(index + 1.0)}

    def epoch(workers: int, skip: int = 0) -> list[float]:
        data = Held("torch")
        loader = build_loader(data, mask, SequentialSampler(data), Share(7), batch_size=5, num_workers=workers)
        loader.enter(skip)
        return torch.cat(list(loader)).tolist()

    assert epoch(0) == epoch(0) == epoch(1)
    assert epoch(0, skip=1) == epoch(0)[5:]


def test_entering_an_epoch_draws_nothing_before_the_first_pull() -> None:
    data = TensorDataset(torch.arange(6.0))
    feed = Feed(build_loader(data, list, SequentialSampler(data), Share(7), batch_size=2), Share(7))
    before = mark()
    batches = feed.epoch(0)
    assert not moved(before), "a resume may enter an epoch at its end alone, where torch's loader drew nothing"
    next(batches)
    assert moved(before)  # torch's loader draws a seed for its workers


def test_kinds_of_data_that_never_draw() -> None:
    tensors = TensorDataset(torch.arange(3))
    assert never_draws(tensors) is False
    assert never_draws(torch.utils.data.Subset(tensors, [0])) is False
    assert never_draws(Augmented("torch")) is None


def test_indices_travel_to_workers_with_their_place() -> None:
    import pickle

    sent = pickle.loads(pickle.dumps(Indices([3, 1], epoch=2, position=8, phantom=True)))
    assert (list(sent), sent.epoch, sent.position, sent.phantom) == ([3, 1], 2, 8, True)


def test_collate_takes_lists_that_are_not_ours() -> None:
    samples = Samples(TensorDataset(torch.arange(3)), seed=0)
    assert Collate(len, samples)([1, 2]) == 2
