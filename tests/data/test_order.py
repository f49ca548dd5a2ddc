"""Orders that go by length: what a step trains on, and how little of it is padding."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.tiny import RegressionStream, TinyRegression, pad_tokens, tiny_llama, token_data
from torch.utils.data import RandomSampler

from onward import Trainer, TrainingArguments
from onward.data.batches import MicroBatches
from onward.data.order import EpochShuffle, LengthAwareSampler, sample_lengths
from onward.errors import UsageError

LENGTHS = torch.randint(1, 60, (203,), generator=torch.Generator().manual_seed(0)).tolist()
STEP = 16


def shuffled(epoch: int, window: int | None) -> list[int]:
    """The plain random order, or ours over it."""
    order: Any = EpochShuffle(RandomSampler(LENGTHS), 7)
    if window is not None:
        order = LengthAwareSampler(order, LENGTHS, STEP, window=window, seed=7)
    order.set_epoch(epoch)
    return list(order)


def steps(order: list[int]) -> list[list[int]]:
    return [order[start : start + STEP] for start in range(0, len(order), STEP)]


def padding(order: list[int], micro_batch: int) -> float:
    """Share of the places of an epoch's micro-batches that is padding."""
    batches = [[LENGTHS[i] for i in batch] for batch in MicroBatches(order, micro_batch)]
    return 1 - sum(map(sum, batches)) / sum(max(batch) * len(batch) for batch in batches)


def test_a_step_keeps_its_samples_and_sorts_them() -> None:
    for epoch in (0, 1):
        plain, aware = shuffled(epoch, None), shuffled(epoch, 1)
        assert [set(step) for step in steps(aware)] == [set(step) for step in steps(plain)]
        for step in steps(aware)[:-1]:
            assert [LENGTHS[i] for i in step] == sorted((LENGTHS[i] for i in step), reverse=True)
        assert steps(aware)[-1] == steps(plain)[-1], "drop_last must not choose among the last samples by length"
        assert padding(aware, 4) < 0.6 * padding(plain, 4)
    assert shuffled(0, 1) != shuffled(1, 1)


def test_a_window_deals_samples_to_its_steps_by_length() -> None:
    plain, wide = shuffled(3, None), shuffled(3, 4)
    assert wide == shuffled(3, 4)
    for start in range(0, len(plain), 4 * STEP):
        assert set(wide[start : start + 4 * STEP]) == set(plain[start : start + 4 * STEP])
    assert padding(wide, STEP) < 0.6 * padding(plain, STEP)
    longest = [max(LENGTHS[i] for i in step) for step in steps(wide)[:12]]
    assert any(a < b for a, b in pairwise(longest)), "the steps of a window are shuffled"


@pytest.mark.parametrize("window", [1, 4])
def test_processes_and_splits_walk_one_order(window: int) -> None:
    order = shuffled(0, window)
    for ranks, size in ((1, 16), (2, 8), (4, 2), (2, 4)):
        shares = [list(MicroBatches(order, size, rank=rank, world_size=ranks)) for rank in range(ranks)]
        walked = [index for together in zip(*shares, strict=True) for share in together for index in share]
        assert walked[: 12 * STEP] == order[: 12 * STEP], (ranks, size)


def test_lengths_of_a_table_are_measured_without_reading_rows() -> None:
    table = Dataset.from_list(token_data(30, (3, 20)))
    wanted = [len(row["input_ids"]) for row in table]
    for data in (table, table.with_format("torch"), table.with_format("numpy", columns=["labels"])):
        assert sample_lengths(data, "length", None) == wanted
    shuffled_table = table.shuffle(seed=1).select(range(20))  # an indices mapping
    assert sample_lengths(shuffled_table, "length", None) == [len(row["input_ids"]) for row in shuffled_table]
    with_column = table.add_column("length", list(range(30)))
    assert sample_lengths(with_column, "length", None) == list(range(30))
    texts = Dataset.from_dict({"input_ids": ["a", "bcd"]})
    assert sample_lengths(texts, "length", None) == [1, 3]
    doubled = table.with_transform(lambda rows: {"input_ids": [ids * 2 for ids in rows["input_ids"]]})
    assert sample_lengths(doubled, "length", None) == [2 * length for length in wanted]


def trainer(folder: Path, data: Any, **options: Any) -> Trainer:
    given: dict[str, Any] = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "num_train_epochs": 2, "logging_steps": 1,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no",
    }  # fmt: skip
    return Trainer(tiny_llama(), TrainingArguments(str(folder), **(given | options)), pad_tokens, train_dataset=data)


def losses(trained: Trainer) -> list[float]:
    return [line["loss"] for line in trained.state.log_history if "loss" in line]


def test_losses_are_those_of_random_batches_with_less_padding(tmp_path: Path) -> None:
    data = token_data(56, (2, 40))
    plain = trainer(tmp_path, data)
    aware = trainer(tmp_path, Dataset.from_list(data), train_sampling_strategy="length_aware")
    pads = [each.train().metrics["train_pad_fraction"] for each in (plain, aware)]
    assert losses(aware) == pytest.approx(losses(plain), rel=1e-5)
    assert pads[1] < 0.6 * pads[0]
    looking = trainer(tmp_path, data, train_sampling_strategy="length_aware")
    widths = [batch["input_ids"].shape[1] for batch in looking.batch_at(2)]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) > 1


def test_a_length_column_counts_though_the_model_does_not_take_it(tmp_path: Path) -> None:
    data = Dataset.from_list(token_data(32, 6)).add_column("length", list(range(32)))
    sampler = trainer(tmp_path, data, train_sampling_strategy="length_aware").get_train_dataloader().batch_sampler
    assert sampler.sampler.lengths == list(range(32))  # type: ignore[union-attr]


def test_what_cannot_work_is_said_at_once(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), train_sampling_strategy="length_aware", max_steps=2, report_to="none")
    with pytest.raises(UsageError, match="is a stream"):
        Trainer(TinyRegression(), args, train_dataset=RegressionStream())
    packing = {"packing": "bfd", "max_tokens_per_batch": 64, "padding_free": True}
    with pytest.raises(UsageError, match="Choose one of them"):
        trainer(tmp_path, token_data(8), train_sampling_strategy="length_aware", **packing).train()
