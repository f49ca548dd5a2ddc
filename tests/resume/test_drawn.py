"""Settings and data drawn at random: a run resumed from any checkpoint ends as if it had never stopped."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.drawn import drawn
from tests.resume.data import (
    SIZE,
    Augmented,
    Deep,
    OngoingStream,
    SizedStatefulStream,
    SizedStream,
    StatefulStream,
    Stream,
    hf_stream,
)
from tests.resume.scenarios import Scenario, checkpoints, disturb, with_evaluation
from tests.resume.test_exact import assert_equal, what_happened
from tests.resume.test_passes import RewindingStream

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
        disturb()
        for checkpoint in found[: found.index(last) + 1]:  # the best one may be an earlier one
            shutil.copytree(checkpoint, tmp_path / "resumed" / checkpoint.name)
        again = ways.make(tmp_path / "resumed", resumed=True)
        loss = again.train(resume_from_checkpoint=True).training_loss
        assert_equal(what_happened(again, loss), wanted, f"{ways.arguments}, from {last.name}")
        shutil.rmtree(tmp_path / "resumed")
