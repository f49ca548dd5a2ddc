"""The default flow and early stopping decide as transformers does, over a grid of settings."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
from transformers.trainer_callback import DefaultFlowCallback as TheirFlow, TrainerControl as TheirControl

from onward.callbacks import DefaultFlowCallback, EarlyStoppingCallback
from onward.errors import UsageError
from onward.state import TrainerControl, TrainerState
from onward.types import IntervalStrategy, SaveStrategy

GRID = [
    dict(zip(("logging_strategy", "eval_strategy", "save_strategy", "eval_delay", "first"), values, strict=True))
    for values in itertools.product(IntervalStrategy, IntervalStrategy, SaveStrategy, (0, 1.5, 6), (False, True))
]


def decisions(flow: Any, control_class: type[Any], settings: dict[str, Any], kind: Any) -> list[dict[str, bool]]:
    """What `flow` asks for over a run of three epochs of three steps, logging, evaluating and saving every 2, 3, 4."""
    args = SimpleNamespace(
        logging_strategy=kind(settings["logging_strategy"].value),
        eval_strategy=kind(settings["eval_strategy"].value),
        save_strategy=settings["save_strategy"].value,
        eval_delay=settings["eval_delay"],
        logging_first_step=settings["first"],
    )
    asked = []
    state = TrainerState(max_steps=8, logging_steps=2, eval_steps=3, save_steps=4)
    for step in range(1, 10):
        state.global_step, state.epoch = step, step / 3
        asked.append(dataclasses.asdict(flow.on_step_end(args, state, control_class())))
        if step % 3 == 0:
            asked.append(dataclasses.asdict(flow.on_epoch_end(args, state, control_class())))
    return asked


@pytest.mark.parametrize("kind", [IntervalStrategy, transformers.trainer_utils.IntervalStrategy, str])
def test_the_flow_asks_as_transformers_does(kind: Any) -> None:
    asked = set()
    for settings in GRID:
        ours = decisions(DefaultFlowCallback(), TrainerControl, settings, kind)
        assert ours == decisions(TheirFlow(), TheirControl, settings, transformers.trainer_utils.IntervalStrategy)
        asked |= {flag for row in ours for flag, value in row.items() if value}
    assert asked == {"should_log", "should_evaluate", "should_save", "should_training_stop"}


def test_no_save_interval_saves_only_at_the_end() -> None:
    args = SimpleNamespace(
        logging_strategy="no", eval_strategy="no", save_strategy="steps", eval_delay=0, logging_first_step=False
    )
    state = TrainerState(max_steps=2, save_steps=0)
    state.global_step = 1
    assert not DefaultFlowCallback().on_step_end(args, state, TrainerControl()).should_save
    state.global_step = 2
    assert DefaultFlowCallback().on_step_end(args, state, TrainerControl()).should_save


VALUES = [3.0, 2.0, 2.0, 1.95, 2.5, math.nan, 1.0, 1.05, 0.99, math.inf, 0.5]


@pytest.mark.parametrize("greater", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.1])
@pytest.mark.parametrize("patience", [1, 2, 4])
@pytest.mark.parametrize("metric", ["loss", "eval_loss"])
def test_early_stopping_counts_as_transformers_does(
    greater: bool, threshold: float, patience: int, metric: str
) -> None:
    ours, theirs = EarlyStoppingCallback(patience, threshold), transformers.EarlyStoppingCallback(patience, threshold)
    args = SimpleNamespace(metric_for_best_model=metric, greater_is_better=greater)
    state = TrainerState()
    for value in VALUES:
        our_control, their_control = TrainerControl(), TheirControl()
        metrics = {"eval_loss": -value if greater else value}
        ours.on_evaluate(args, state, our_control, metrics=metrics)
        theirs.on_evaluate(args, state, their_control, metrics)
        assert ours.state() == theirs.state()
        assert our_control.should_training_stop == their_control.should_training_stop
        if state.best_metric is None or (metrics["eval_loss"] > state.best_metric) == greater:
            state.best_metric = metrics["eval_loss"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"metric_for_best_model": None}, "metric_for_best_model"), ({"eval_strategy": "no"}, "eval_strategy")],
)
def test_early_stopping_says_what_it_needs(settings: dict[str, Any], said: str) -> None:
    good = {"metric_for_best_model": "loss", "eval_strategy": "steps", "load_best_model_at_end": True}
    with pytest.raises(UsageError, match=said):
        EarlyStoppingCallback().on_train_begin(SimpleNamespace(**good | settings), TrainerState(), TrainerControl())
    EarlyStoppingCallback().on_train_begin(SimpleNamespace(**good), TrainerState(), TrainerControl())


def test_a_missing_metric_is_named_and_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    callback = EarlyStoppingCallback()
    args = SimpleNamespace(metric_for_best_model="f1", greater_is_better=True)
    with caplog.at_level(logging.WARNING, "onward"):
        callback.on_evaluate(args, TrainerState(best_metric=1.0), TrainerControl(), metrics={"eval_loss": 1.0})
    assert "eval_f1" in caplog.text
    assert "eval_loss" in caplog.text
    assert callback.early_stopping_patience_counter == 0
