"""Settings and data drawn at random: a run that stopped anywhere and was resumed ends as if it had not stopped."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from onward.errors import Preempted
from tests.drawn import drawn
from tests.parity.record import EVENTS
from tests.resume.data import (
    SIZE,
    Augmented,
    Deep,
    OngoingStream,
    RewindingStream,
    SizedStatefulStream,
    SizedStream,
    StatefulStream,
    Stream,
    hf_stream,
)
from tests.resume.scenarios import Scenario, Signals, checkpoints, disturb, with_evaluation
from tests.resume.test_exact import assert_equal, assert_resumes, what_happened

QUICK, COUNT = 16, 300
INDEXED, SIZED, ENDLESS = "indexed", "sized", "endless"
SIZES = (8, 17, SIZE)
DATA: list[tuple[str, Callable[[], Any]]] = [
    *((INDEXED, partial(Augmented, *ways)) for ways in product(("torch", "numpy", "python", "its own"), SIZES)),
    *((INDEXED, partial(Deep, kind)) for kind in ("deep", "epoch", "lazy")),
    *((SIZED, kind) for kind in (SizedStream, SizedStatefulStream, OngoingStream)),
    *((ENDLESS, partial(*ways)) for ways in product((Stream, StatefulStream, RewindingStream), SIZES)),
    *((ENDLESS, partial(hf_stream, shuffle)) for shuffle in (False, True)),
]


def scenario(seed: int) -> Scenario:
    """A way to train for two steps at least that keeps what it saves."""
    chance = random.Random(seed)
    kind, data = chance.choice(DATA)
    settings = drawn(chance) | {"num_train_epochs": chance.choice((1.7, 3)), "save_total_limit": None}
    settings["save_strategy"] = chance.choice(("steps", "epoch"))
    if settings.get("load_best_model_at_end"):
        settings["save_strategy"] = settings["eval_strategy"]
    if kind == ENDLESS or settings.get("max_steps") == 1:
        settings["max_steps"] = chance.choice((4, 9, 14))
    if kind != INDEXED:
        settings.pop("train_sampling_strategy", None)
    return Scenario(settings, data=data, dropout=chance.choice((0.0, 0.3)), extra=with_evaluation)


SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] if seed >= QUICK else []) for seed in range(COUNT)]


@pytest.mark.parametrize("seed", SEEDS)
def test_resuming_from_two_checkpoints(seed: int, tmp_path: Path) -> None:
    ways = scenario(seed)
    trainer = ways.make(tmp_path / "whole")
    wanted = what_happened(trainer, trainer.train().training_loss)
    found = checkpoints(tmp_path / "whole")
    assert found
    for last in random.Random(seed).sample(found, min(2, len(found))):
        assert_resumes(ways, found, last, wanted)


@pytest.fixture
def late_signals() -> Iterator[None]:
    """A signal that comes when all is trained is passed on, here to nobody."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("seed", SEEDS)
def test_leaving_up_to_three_times(seed: int, tmp_path: Path, late_signals: None) -> None:
    ways, counts, chance = scenario(COUNT + seed), Signals(EVENTS), random.Random(seed)
    trainer = ways.make(tmp_path / "whole")
    trainer.add_callback(counts)
    wanted = what_happened(trainer, trainer.train().training_loss)
    places: list[int | None] = [chance.randint(1, counts.count // tries) for tries in (1, 2, 2)]
    for tries, place in enumerate([*places, None]):
        disturb()
        again = ways.make(tmp_path / "left", resumed=tries > 0)
        again.add_callback(Signals(EVENTS, place))
        try:
            loss = again.train(resume_from_checkpoint=tries > 0).training_loss
            break
        except Preempted:
            continue
    assert_equal(what_happened(again, loss), wanted, f"{ways.arguments}, left at events {places}")
