"""onward computes what transformers computes: every scenario, to the bit."""

from __future__ import annotations

import pytest

from .compare import differences
from .harness import Pair
from .scenarios import SCENARIOS
from .scenarios.arguments import ARGUMENTS
from .scenarios.drawn import COUNT, QUICK

LONG = frozenset(f"drawn_{seed:03}" for seed in range(QUICK, COUNT))
PARITY = [
    pytest.param(name, marks=[pytest.mark.scenarios(name), *([pytest.mark.slow] if name in LONG else [])], id=name)
    for name in SCENARIOS
    if name not in ("another_seed", "every_argument")
]


@pytest.mark.parametrize("name", PARITY)
def test_equal_to_the_bit(pair: Pair, name: str) -> None:
    theirs, ours = pair.records(name)
    assert "error" not in theirs, f"the scenario itself is broken:\n{theirs['error']}"
    assert "error" not in ours, ours["error"]
    found = differences(theirs, ours)
    assert not found, "\n".join([f"{len(found)} differences, first:", *found[:12]])


@pytest.mark.scenarios("defaults", "another_seed")
def test_another_seed_is_told_apart(pair: Pair) -> None:
    theirs, _ = pair.records("defaults")
    _, ours = pair.records("another_seed")
    found = differences(theirs, ours)
    parts = {line.split(".")[0].split("[")[0].split(":")[0] for line in found}
    assert {"log_history", "train_output", "weights"} <= parts


@pytest.mark.scenarios("two_ranks_accumulated", "two_ranks_each_by_its_own_count")
def test_what_ranks_divide_by_is_told_apart(pair: Pair) -> None:
    assert differences(pair.record(0, "two_ranks_accumulated"), pair.record(1, "two_ranks_each_by_its_own_count"))


@pytest.mark.scenarios("defaults")
def test_a_record_is_complete(pair: Pair) -> None:
    for record in pair.records("defaults"):
        assert len(record["log_history"]) == 1
        assert {"train_loss", "total_flos", "epoch"} <= record["log_history"][0].keys()
        assert record["train_output"]["metrics"].keys() >= {"train_loss", "train_samples_per_second"}
        assert len(record["weights"]) == 21
        assert sum(event["event"] == "on_step_end" for event in record["events"]) == 12


@pytest.mark.scenarios("every_argument")
@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_changes_what_it_changes_in_transformers(pair: Pair, name: str) -> None:
    theirs, ours = pair.records("every_argument")
    assert "error" not in {*theirs, *ours}, (theirs.get("error"), ours.get("error"))
    assert theirs[name]["with"] != theirs[name]["without"], "nothing here shows this argument"
    assert differences(theirs[name]["without"], theirs[name]["with"]), "what shows it is left out of the comparison"
    found = differences(theirs[name], ours[name])
    assert not found, "\n".join(found[:12])
