"""Samples grouped to fill batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import RandomSampler

from onward import Trainer, TrainingArguments
from onward.data.order import EpochShuffle
from onward.errors import UsageError
from onward.speed.packing import PackedBatches, best_fit_decreasing
from tests.tiny import pad_tokens, tiny_llama, token_data

LENGTHS = torch.randint(1, 60, (200,), generator=torch.Generator().manual_seed(0)).tolist()


def tokens(batch: list[int]) -> int:
    return sum(LENGTHS[index] for index in batch)


def test_each_sample_once_and_batches_nearly_full() -> None:
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1)).tolist()
    batches = best_fit_decreasing(order, LENGTHS, 100)
    assert sorted(index for batch in batches for index in batch) == list(range(200))
    assert max(map(tokens, batches)) <= 100
    assert len(batches) <= sum(LENGTHS) / 100 * 1.03 + 1
    first = [order.index(batch[0]) for batch in batches]
    assert first == sorted(first)


def test_takes_the_fullest_batch_with_room() -> None:
    assert best_fit_decreasing([0, 1, 2, 3], [6, 5, 4, 3], 10) == [[0, 2], [1, 3]]


def test_a_sample_longer_than_the_limit_stands_alone() -> None:
    assert best_fit_decreasing([0, 1, 2], [3, 50, 3], 10) == [[0, 2], [1]]


@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_epochs_differ_but_have_as_many_batches_on_every_process(world_size: int) -> None:
    def epoch(number: int, rank: int) -> list[list[int]]:
        order = EpochShuffle(RandomSampler(LENGTHS), 7)
        packed = PackedBatches(order, LENGTHS, 100, rank=rank, world_size=world_size)
        order.set_epoch(number)
        batches = list(packed)
        assert len(batches) == len(packed)
        return batches

    first = [epoch(0, rank) for rank in range(world_size)]
    assert first == [epoch(0, rank) for rank in range(world_size)]
    assert len({len(batches) for batches in first}) == 1
    assert sorted(index for batches in first for batch in batches for index in batch) == list(range(200))
    assert epoch(1, 0) != first[0]
    assert len(epoch(1, 0)) == len(first[0])


def packed_run(folder: Path, **options: Any) -> Trainer:
    given: dict[str, Any] = {
        "output_dir": str(folder), "num_train_epochs": 2, "logging_steps": 1, "report_to": "none", "use_cpu": True,
        "disable_tqdm": True, "padding_free": True, "packing": "bfd", "max_tokens_per_batch": 64, "save_steps": 3,
    }  # fmt: skip
    return Trainer(
        tiny_llama(), TrainingArguments(**(given | options)), pad_tokens, train_dataset=token_data(40, (3, 20))
    )


def test_trains_and_resumes_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    whole = packed_run(tmp_path)
    whole.train()
    assert whole.meters.pads == 0
    assert whole.meters.samples == 80
    resumed = packed_run(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    losses = [[h["loss"] for h in t.state.log_history if "loss" in h] for t in (whole, resumed)]
    assert losses[0] == losses[1]
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"padding_free": "auto"}, "padding_free"),
        ({"max_tokens_per_batch": None}, "max_tokens_per_batch"),
        ({"packing": None}, "packing"),
    ],
)
def test_says_what_it_needs(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        packed_run(tmp_path, **options).train()
