"""The batch of a step whose order came from random number generators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.loop.test_feeding import Remembers
from tests.resume.data import lengths, stack_without_ids
from tests.resume.scenarios import GeneratorLoader
from tests.tiny import RegressionData, TinyRegression

from onward import TrainingArguments
from onward.errors import UsageError


class Both(Remembers, GeneratorLoader):
    """Shuffles with a generator of the user's, and keeps what each step trained on."""


def trainer(kind: str, folder: Path, **settings: Any) -> Remembers:
    grouped = {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
    args = TrainingArguments(
        output_dir=str(folder), num_train_epochs=3, per_device_train_batch_size=4, save_steps=4, report_to="none",
        disable_tqdm=True, **(grouped if kind == "grouped" else {}), **settings,
    )  # fmt: skip
    model = TinyRegression(dropout=0.3)
    if kind == "grouped":
        return Remembers(model, args, train_dataset=lengths(), data_collator=stack_without_ids)
    return Both(model, args, train_dataset=RegressionData(22))


@pytest.mark.parametrize("kind", ["grouped", "a generator"])
def test_any_step_of_a_run_that_saved_in_each_epoch(kind: str, tmp_path: Path) -> None:
    trained = trainer(kind, tmp_path)
    trained.train()
    assert len(trained.seen) == 18
    looking = trainer(kind, tmp_path)
    torch.rand(5)
    stream = torch.get_rng_state()
    for step in (18, 1, 7, 12, 3):
        assert torch.equal(looking.batch_at(step)[0]["x"], trained.seen[step - 1]), step
    assert torch.equal(torch.get_rng_state(), stream)
    assert torch.equal(trained.batch_at(14)[0]["x"], trained.seen[13])


@pytest.mark.parametrize("kind", ["grouped", "a generator"])
def test_an_order_that_nobody_knows_is_no_guess(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the order of epoch 1 .* was drawn from random number generators"):
        trainer(kind, tmp_path).batch_at(7)
