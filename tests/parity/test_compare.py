"""The comparison sees the smallest change, and nothing where there is none."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from .compare import differences
from .record import exact

RECORD: dict[str, Any] = {
    "log_history": [
        {"loss": exact(0.1), "grad_norm": exact(1.5), "step": 1},
        {"train_loss": exact(0.1), "train_runtime": exact(3.0), "step": 1},
    ],
    "weights": {"w": exact(torch.ones(3))},
    "events": [
        {"event": "on_step_begin", "step": 0, "flags": []},
        {"event": "on_step_end", "step": 1, "flags": ["should_log"]},
    ],
    "checkpoints": {"checkpoint-1": {"files": ["model.safetensors"], "state": {"global_step": 1}}},
}


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """`RECORD` with the entry at `path` replaced, or deleted where `value` is `...`."""
    record = copy.deepcopy(RECORD)
    place: Any = record
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return record


def test_equal_records() -> None:
    assert differences(RECORD, copy.deepcopy(RECORD)) == []


def test_measurements_are_not_compared() -> None:
    assert differences(RECORD, changed(("log_history", 1, "train_runtime"), exact(4.0))) == []


def test_files_of_our_own_are_not_compared() -> None:
    files = ["model.safetensors", "onward_manifest.json", "onward_state.json"]
    assert differences(RECORD, changed(("checkpoints", "checkpoint-1", "files"), files)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("log_history", 0, "loss"), exact(math.nextafter(0.1, 1))),
        (("log_history", 0, "grad_norm"), ...),
        (("log_history", 0, "new"), exact(1.0)),
        (("log_history", 0, "step"), 1.0),
        (("log_history", 0, "step"), True),
        (("log_history", 1), ...),
        (("weights", "w"), exact(torch.tensor([1.0, 1.0, math.nextafter(1.0, 2) + 1e-7]))),
        (("weights", "w"), exact(torch.ones(3, dtype=torch.float64))),
        (("weights", "w"), exact(torch.ones(3, 1))),
        (("weights",), ...),
        (("events", 1, "flags"), []),
        (("events", 1, "step"), 2),
        (("events", 0), ...),
        (("checkpoints", "checkpoint-1", "files"), []),
        (("checkpoints", "checkpoint-1", "state", "global_step"), 2),
    ],
)
def test_the_smallest_change_is_seen(path: tuple[Any, ...], value: Any) -> None:
    found = differences(RECORD, changed(path, value))
    assert found
    assert found[0].startswith(path[0])


def test_the_first_difference_of_a_list_is_named() -> None:
    assert differences(RECORD, changed(("events", 0), ...))[:2] == [
        "events: transformers has 2 entries, onward 1",
        "events[0].event: transformers 'on_step_begin', onward 'on_step_end'",
    ]


def test_losses_come_first() -> None:
    record = changed(("log_history", 0, "loss"), exact(0.2))
    record["weights"]["w"] = exact(torch.zeros(3))
    assert [line.split(".")[0] for line in differences(RECORD, record)] == ["log_history[0]", "weights"]


def test_exact_keeps_every_bit() -> None:
    assert exact(0.1 + 0.2) != exact(0.3)
    assert exact(np.float32(0.1)) == float(np.float32(0.1)).hex()
    assert exact(float("nan")) == "nan"
    assert exact(torch.tensor([0.0])) != exact(torch.tensor([-0.0]))
    assert exact(np.zeros((2, 3))) != exact(np.zeros((3, 2)))
    assert exact({"a": (1, True, None)}) == {"a": [1, True, None]}
    assert exact(torch.zeros(0)) == exact(torch.zeros(0))
