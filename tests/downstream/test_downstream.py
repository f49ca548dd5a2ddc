"""TRL and sentence-transformers train the same over `onward.Trainer` as over `transformers.Trainer`, to the bit."""

from __future__ import annotations

import pytest

from tests.parity.compare import differences
from tests.parity.harness import Pair

from .scenarios import SCENARIOS

ALL = [
    pytest.param(name, id=name, marks=[pytest.mark.scenarios(name)] + ([] if known.quick else [pytest.mark.slow]))
    for name, known in SCENARIOS.items()
]


@pytest.mark.parametrize("name", ALL)
def test_equal_to_the_bit(sides: Pair, name: str) -> None:
    theirs, ours = sides.records(name)
    assert "error" not in theirs, f"the scenario itself is broken:\n{theirs['error']}"
    assert "error" not in ours, ours["error"]
    found = differences(theirs, ours)
    assert not found, "\n".join([f"{len(found)} differences, first:", *found[:12]])
