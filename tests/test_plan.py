"""How long a run is."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from onward.errors import UsageError
from onward.plan import RunLength, RunPlan, make_plan


def plan(max_steps: int = -1, epochs: float = 3.0, **given: Any) -> RunPlan:
    sizes: dict[str, Any] = {
        "micro_batch_size": 4,
        "accumulation": 2,
        "world_size": 1,
        "batches_per_epoch": 5,
        "num_examples": 18,
    }
    return make_plan(RunLength(max_steps, epochs), **(sizes | given))


def test_epochs_decide_the_steps() -> None:
    made = plan()
    assert (made.steps_per_epoch, made.max_steps, made.num_epochs) == (3, 9, 3)
    assert made.num_train_samples == 54
    assert made.global_batch_size == 8


def test_a_part_of_an_epoch_counts_as_one() -> None:
    made = plan(epochs=1.5)
    assert (made.max_steps, made.num_epochs) == (5, 2)


def test_steps_win_over_epochs() -> None:
    made = plan(max_steps=7)
    assert (made.max_steps, made.num_epochs) == (7, 3)
    assert made.num_train_samples == 56


def test_the_last_step_of_an_epoch_has_what_is_left() -> None:
    assert [plan().batches_in_step(step) for step in range(3)] == [2, 2, 1]
    assert plan(batches_per_epoch=6).batches_in_step(2) == 2


def test_data_without_a_length_needs_steps() -> None:
    made = plan(max_steps=7, batches_per_epoch=None, num_examples=None)
    assert (made.steps_per_epoch, made.max_steps, made.num_epochs) == (7, 7, sys.maxsize)
    assert made.batches_in_step(6) == 2
    with pytest.raises(UsageError, match="Set max_steps"):
        plan(batches_per_epoch=None)
