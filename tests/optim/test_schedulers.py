"""Schedules follow transformers' to the bit, and either side goes on from the other's saved state."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from onward.errors import UsageError
from onward.optim.schedulers import CURVES, ON_METRIC, current_rate, make_scheduler, steps_on_metric
from onward.types import SchedulerType

# transformers' own, when a stable phase of a given length meets a run of a given length
pytestmark = pytest.mark.filterwarnings("ignore:Both num_training_steps and num_stable_steps:UserWarning")

WSD = "warmup_stable_decay"
CASES: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("cosine", {}),
    ("cosine", {"num_cycles": 1.7}),
    ("cosine_with_restarts", {}),
    ("cosine_with_restarts", {"num_cycles": 3}),
    ("polynomial", {}),
    ("polynomial", {"lr_end": 1e-5, "power": 2.5}),
    ("constant", {}),
    ("constant_with_warmup", {}),
    ("inverse_sqrt", {}),
    ("inverse_sqrt", {"timescale": 13}),
    ("cosine_with_min_lr", {"min_lr": 1e-4}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.3, "num_cycles": 2}),
    ("cosine_warmup_with_min_lr", {"min_lr": 1e-4}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1, "warmup_lr_rate": 0.2}),
    (WSD, {"num_decay_steps": 11}),
    (WSD, {"num_decay_steps": 9, "num_stable_steps": 4, "warmup_type": "cosine", "decay_type": "linear"}),
    (WSD, {"num_decay_steps": 9, "warmup_type": "1-sqrt", "decay_type": "1-sqrt", "min_lr_ratio": 0.07}),
    (WSD, {"num_decay_steps": 9, "decay_type": "cosine", "num_cycles": 1.5, "min_lr_ratio": 0.2}),
]
TOTAL = 40


def sgd(groups: int = 2, lr: float = 3e-3) -> torch.optim.SGD:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(groups)]
    return torch.optim.SGD([{"params": [p], "lr": lr / (i + 1)} for i, p in enumerate(parameters)], lr=lr)


def both(name: str, options: dict[str, Any], warmup: int, total: int = TOTAL) -> tuple[Any, Any]:
    from transformers import get_scheduler

    theirs = get_scheduler(name, sgd(), warmup, total, scheduler_specific_kwargs=dict(options))
    return make_scheduler(name, sgd(), warmup, total, dict(options)), theirs


def rates(scheduler: Any) -> list[float]:
    return [group["lr"] for group in scheduler.optimizer.param_groups]


def advance(scheduler: Any, steps: int) -> list[list[float]]:
    seen = []
    for _ in range(steps):
        seen.append(rates(scheduler))
        scheduler.optimizer.step()
        scheduler.step()
    return seen


def metrics(count: int) -> list[float]:
    """A loss that falls, sticks, jumps and falls again."""
    return [1.0 / (1 + i) if i % 37 < 18 else 1.0 + math.sin(i) for i in range(count)]


def test_every_name_of_transformers_is_known() -> None:
    from transformers.trainer_utils import SchedulerType as Theirs

    assert {*CURVES, *ON_METRIC} == {member.value for member in Theirs} == {member.value for member in SchedulerType}


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_whole_runs_are_equal_to_the_bit(name: str, options: dict[str, Any], warmup: int) -> None:
    ours, theirs = both(name, options, warmup)
    # Past the end too: a run may be continued beyond the length that its schedule was made for.
    assert advance(ours, TOTAL + 5) == advance(theirs, TOTAL + 5)
    assert ours.get_last_lr() == theirs.get_last_lr()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_saved_state_goes_both_ways(name: str, options: dict[str, Any]) -> None:
    ours, theirs = both(name, options, 5)
    advance(ours, 17), advance(theirs, 17)
    assert ours.state_dict() == theirs.state_dict()
    to_theirs, from_ours = both(name, options, 5)[1], ours.state_dict()
    to_ours, from_theirs = both(name, options, 5)[0], theirs.state_dict()
    to_theirs.load_state_dict(from_ours)
    to_ours.load_state_dict(from_theirs)
    rest = advance(ours, 10)
    # The rates themselves are saved with the optimizer, so they are equal from the first step after the load on.
    assert advance(to_theirs, 10)[1:] == advance(to_ours, 10)[1:] == rest[1:]


def test_a_saved_state_does_not_bring_its_old_length() -> None:
    short, long = both("linear", {}, 0, total=10)[0], both("linear", {}, 0, total=20)[0]
    advance(short, 5)
    long.load_state_dict(short.state_dict())
    long.optimizer.step()
    long.step()
    assert long.get_last_lr()[0] == 3e-3 * (14 / 20)


@pytest.mark.parametrize(
    "options",
    [{}, {"mode": "max", "factor": 0.5, "patience": 1}, {"patience": 0, "cooldown": 2, "threshold_mode": "abs"}],
)
def test_plateau_is_torchs_own(options: dict[str, Any]) -> None:
    ours, theirs = both("reduce_lr_on_plateau", options, 5)
    for value in metrics(60):
        ours.step(value), theirs.step(value)
        assert rates(ours) == rates(theirs)
    assert ours.state_dict() == theirs.state_dict()


GREEDY: list[dict[str, Any]] = [
    {},
    {"patience": 2, "min_lr": 1e-5, "factor": 0.7},
    {"patience": 1, "min_lr": [1e-4, 2e-4], "max_lr": [4e-3, 5e-3], "cooldown": 3, "warmup": 2, "factor": 0.5},
    {"patience": 1, "mode": "max", "threshold_mode": "rel", "threshold": 0.01, "min_lr": 1e-4, "factor": 0.8},
    {"patience": 1, "min_lr": 1e-3, "smooth": True, "window_size": 4, "factor": 0.5, "reset_start": 2},
    {"patience": 0, "min_lr": 1e-5, "threshold_mode": "rel", "factor": 0.9, "reset_start": 1},
]


@pytest.mark.parametrize("options", GREEDY)
def test_greedy_decides_as_theirs(options: dict[str, Any]) -> None:
    ours, theirs = both("greedy", options, 5)
    for value in metrics(200):
        ours.step(value), theirs.step(value)
        assert rates(ours) == rates(theirs)
        assert ours.state_dict() == theirs.state_dict()


def test_greedy_really_moves_and_starts_over() -> None:
    """Guards the comparison above: a schedule that never moved would pass it."""
    ours = make_scheduler("greedy", sgd(), None, None, GREEDY[4])
    seen = set()
    for value in metrics(200):
        ours.step(value)
        seen.add(rates(ours)[0])
    assert len(seen) > 3
    assert min(seen) == 1e-3
    assert max(seen) > 3e-3


@pytest.mark.parametrize("options", GREEDY)
def test_greedy_goes_on_from_either_sides_state(options: dict[str, Any]) -> None:
    ours, theirs = both("greedy", options, 5)
    for value in metrics(50):
        ours.step(value), theirs.step(value)
    to_ours, to_theirs = both("greedy", options, 5)
    to_ours.load_state_dict(theirs.state_dict())
    to_theirs.load_state_dict(ours.state_dict())
    for value in metrics(120)[50:]:
        ours.step(value), to_ours.step(value), to_theirs.step(value)
        assert rates(ours) == rates(to_ours) == rates(to_theirs)


@pytest.mark.parametrize(
    ("name", "options", "needle"),
    [
        ("cosin", {}, "Did you mean 'cosine'"),
        ("cosine", {"num_cycle": 2}, "Did you mean 'num_cycles'"),
        ("linear", {"power": 2}, "reads none"),
        ("cosine_with_min_lr", {}, "exactly one"),
        ("cosine_with_min_lr", {"min_lr": 1, "min_lr_rate": 1}, "exactly one"),
        ("polynomial", {"lr_end": 1.0}, "less than learning_rate"),
        (WSD, {}, "num_decay_steps"),
        (WSD, {"num_decay_steps": 3, "decay_type": "square"}, "decay_type='square'"),
        ("greedy", {"factor": 1.0}, "less than 1"),
        ("greedy", {"min_lr": [1.0]}, "one for each of 2 groups"),
        ("greedy", {"mode": "mean"}, "'min' or 'max'"),
        ("greedy", {"threshold_mode": "abz"}, "'rel' or 'abs'"),
    ],
)
def test_bad_input_is_named(name: str, options: dict[str, Any], needle: str) -> None:
    with pytest.raises(UsageError, match=needle):
        make_scheduler(name, sgd(), 2, 10, options)


def test_missing_lengths_are_named() -> None:
    with pytest.raises(UsageError, match="num_warmup_steps"):
        make_scheduler("linear", sgd(), None, 10)
    with pytest.raises(UsageError, match="num_training_steps"):
        make_scheduler("linear", sgd(), 0, None)


def test_constant_runs_with_options_that_mean_nothing_to_it(caplog: pytest.LogCaptureFixture) -> None:
    make_scheduler(SchedulerType.CONSTANT, sgd(), 0, 10, {"num_cycles": 2})
    assert "num_cycles" in caplog.text


def test_which_schedules_wait_for_a_metric() -> None:
    for name in ON_METRIC:
        ours, theirs = both(name, {}, 0)
        assert steps_on_metric(ours)
        assert steps_on_metric(theirs)
        assert current_rate(ours, ours.optimizer) == 3e-3
    linear = make_scheduler("linear", sgd(), 0, 10)
    assert not steps_on_metric(linear)
    advance(linear, 5)
    assert current_rate(linear, linear.optimizer) == 3e-3 * 0.5
