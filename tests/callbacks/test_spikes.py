"""A loss that jumps is noticed; noise, a falling curve and a new level are not mistaken for it."""

from __future__ import annotations

import json
import logging
import math
import random
from typing import Any

import pytest

from onward.callbacks import LossSpikeCallback
from onward.errors import UsageError
from onward.state import TrainerControl, TrainerState


def run(losses: list[Any], **options: Any) -> LossSpikeCallback:
    callback = LossSpikeCallback(**options)
    for step, loss in enumerate(losses, start=1):
        callback.on_log(None, TrainerState(global_step=step), TrainerControl(), logs={"loss": loss})
    return callback


def curve(steps: int) -> list[float]:
    draw = random.Random(0)
    return [1.0 + 3.0 * math.exp(-step / 40) + draw.gauss(0, 0.05) for step in range(steps)]


def test_spikes_are_found_and_only_those(caplog: pytest.LogCaptureFixture) -> None:
    losses = curve(300)
    losses[99] += 2.0
    losses[100] += 2.0
    losses[249] += 1.0
    with caplog.at_level(logging.WARNING, "onward"):
        assert run(losses).spikes == [100, 101, 250]
    assert "at step 250" in caplog.text
    assert run(curve(300)).spikes == []


def test_a_new_level_is_reported_until_it_is_the_usual_one() -> None:
    spikes = run([1.0] * 20 + [2.0] * 40, window=10).spikes
    assert spikes == [21, 22, 23, 24, 25]


def test_a_smooth_curve_has_a_floor_under_its_spread() -> None:
    assert run([1.0] * 20 + [1.01] * 5).spikes == []
    assert run([1.0] * 20 + [1.2]).spikes == [21]


def test_what_is_no_finite_loss_is_passed_over() -> None:
    callback = run([1.0] * 10 + [math.nan, math.inf, None, "1.0"])
    assert callback.spikes == []
    assert len(callback.losses) == 10


def test_a_restored_callback_goes_on() -> None:
    whole = run([*curve(30), 9.0, 9.0])
    half = run(curve(30))
    restored = LossSpikeCallback.from_state(json.loads(json.dumps(half.state())))
    for step in (31, 32):
        restored.on_log(None, TrainerState(global_step=step), TrainerControl(), logs={"loss": 9.0})
    assert vars(restored) == vars(whole)
    assert restored.spikes == [31, 32]


@pytest.mark.parametrize("options", [{"threshold": 0}, {"window": 4}, {"action": "explode"}])
def test_settings_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="LossSpikeCallback got"):
        LossSpikeCallback(**options)
