"""The order of samples and its micro-batches."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import RandomSampler, SequentialSampler

from onward.data.batches import GivenBatches, MicroBatches
from onward.data.order import EpochShuffle, LengthGroupedSampler, has_length, sample_lengths
from onward.errors import DataError


def batches(size: int, batch: int, world: int = 1, drop_last: bool = False, skip: int = 0) -> list[list[list[int]]]:
    """Micro-batches of every rank."""
    found = []
    for rank in range(world):
        source = MicroBatches(SequentialSampler(range(size)), batch, rank=rank, world_size=world, drop_last=drop_last)
        length = len(source)
        source.skip = skip
        mine = [list(b) for b in source if not b.phantom]
        phantoms = [b for b in _again(source, skip) if b.phantom]
        assert len(mine) + len(phantoms) == length - skip
        found.append(mine)
    return found


def _again(source: MicroBatches, skip: int) -> list:  # type: ignore[type-arg]
    source.skip = skip
    return list(source)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 7, 12, 13])
def test_no_sample_is_lost_or_repeated(world: int, size: int) -> None:
    seen = [i for rank in batches(size, 2, world) for b in rank for i in b]
    assert sorted(seen) == list(range(size))


@pytest.mark.parametrize(("batch", "world", "accumulation"), [(8, 1, 1), (4, 2, 1), (2, 2, 2), (2, 4, 1), (1, 1, 8)])
def test_a_step_is_the_same_samples_however_it_is_split(batch: int, world: int, accumulation: int) -> None:
    ranks = batches(20, batch, world)
    steps = []
    for start in range(0, max(map(len, ranks)), accumulation):
        steps.append(sorted(i for rank in ranks for b in rank[start : start + accumulation] for i in b))
    assert steps == [list(range(0, 8)), list(range(8, 16)), list(range(16, 20))]


@pytest.mark.parametrize(("size", "world"), [(20, 1), (21, 2), (23, 3)])
def test_joined_micro_batches_are_the_same_samples_at_the_same_places(size: int, world: int) -> None:
    for rank in range(world):
        source = MicroBatches(SequentialSampler(range(size)), 2, rank=rank, world_size=world)
        single = list(source)
        source.together, source.skip = 3, 3
        left = single[3:]
        for whole in source:
            group, left = left[: len(whole.sizes)], left[len(whole.sizes) :]
            assert list(whole) == [i for b in group for i in b]
            assert list(whole.positions) == [p for b in group for p in b.positions]
            assert whole.sizes == list(map(len, group))
            assert not any(b.phantom for b in group) or len(group) == 1
            tail = whole.stretch(1, len(whole))
            assert list(tail.positions) == list(whole.positions)[1:]
        assert not left


def test_dropping_the_last() -> None:
    assert batches(7, 2, drop_last=True) == [[[0, 1], [2, 3], [4, 5]]]
    assert batches(7, 2, world=2, drop_last=True) == [[[0, 1]], [[2, 3]]]


def test_skipping_skips_indices_once() -> None:
    source = MicroBatches(SequentialSampler(range(7)), 2)
    source.skip = 2
    assert [(list(b), b.position) for b in source] == [([4, 5], 4), ([6], 6)]
    assert len(list(source)) == 4


def test_shuffle_is_a_function_of_seed_and_epoch() -> None:
    sampler = EpochShuffle(RandomSampler(range(50)), seed=3)
    sampler.set_epoch(2)
    first = list(sampler)
    torch.rand(3)
    assert list(sampler) == first
    sampler.set_epoch(3)
    assert list(sampler) != first
    expected = torch.randperm(50, generator=torch.Generator().manual_seed(3 + 2)).tolist()
    assert first == expected


def test_grouping_by_length_keeps_every_sample_and_starts_with_the_longest() -> None:
    lengths = torch.randint(1, 100, (200,)).tolist()
    order = list(LengthGroupedSampler(lengths, 8, torch.Generator().manual_seed(0)))
    assert sorted(order) == list(range(200))
    assert lengths[order[0]] == max(lengths)

    def spread(indices: list[int]) -> float:
        return sum(
            max(lengths[i] for i in indices[s : s + 8]) - min(lengths[i] for i in indices[s : s + 8])
            for s in range(0, 200, 8)
        )

    assert spread(order) < spread(list(range(200))) / 2


def test_grouping_by_length_is_that_of_transformers() -> None:
    pytest.importorskip("transformers")
    from transformers.trainer_pt_utils import LengthGroupedSampler as Theirs

    lengths = torch.randint(1, 50, (101,)).tolist()
    theirs = list(Theirs(4, lengths=lengths, generator=torch.Generator().manual_seed(5)))
    assert list(LengthGroupedSampler(lengths, 4, torch.Generator().manual_seed(5))) == theirs


def test_lengths_need_samples_with_the_key() -> None:
    assert sample_lengths([{"input_ids": [1, 2]}, {"input_ids": [1]}], "length", None) == [2, 1]
    with pytest.raises(DataError, match="'pixels'"):
        sample_lengths([{"pixels": [1]}], "length", None)


def test_given_batches_are_taken_as_they_are() -> None:
    source = GivenBatches([[1, 2], [3]], rank=1)  # type: ignore[arg-type]
    source.skip = 1
    assert [list(b) for b in source] == [[3]]
    assert len(source) == 2


def test_has_length() -> None:
    class Raises:
        def __len__(self) -> int:
            raise TypeError

    assert has_length([1])
    assert not has_length(Raises())
    assert not has_length(iter([]))
