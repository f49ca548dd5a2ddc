"""A signal in evaluations of all kinds, and what an evaluation that is given up leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onward import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments, get_last_checkpoint
from onward.errors import Preempted
from tests.resume.scenarios import Signals
from tests.resume.test_exact import assert_equal, what_happened
from tests.tiny import RegressionData, TinyRegression


class Evaluates(TrainerCallback):
    """Evaluates by itself at step 3."""

    trainer: Trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            self.trainer.evaluate(RegressionData(20), metric_key_prefix="own")


def make(folder: Path, *callbacks: TrainerCallback, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "max_steps": 10, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "learning_rate": 1e-2,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    data: Any = options.pop("eval_dataset", RegressionData(20))
    trainer = Trainer(
        TinyRegression(dropout=0.3),
        TrainingArguments(output_dir=str(folder), **(settings | options)),
        train_dataset=RegressionData(24),
        eval_dataset=data,
        callbacks=list(callbacks),
    )
    for callback in callbacks:
        if isinstance(callback, Evaluates):
            callback.trainer = trainer
    return trainer


def assert_goes_on_exactly(folder: Path, signals: Signals, *, step: int, **options: Any) -> None:
    def others() -> list[TrainerCallback]:
        patience = [EarlyStoppingCallback(3, 10.0)] if "metric_for_best_model" in options else []
        return [Evaluates(), *patience]

    whole = make(folder / "whole", *others(), **options)
    wanted = what_happened(whole, whole.train().training_loss)
    left = make(folder / "left", *others(), signals, **options)
    with pytest.raises(Preempted):
        left.train()
    checkpoint = get_last_checkpoint(folder / "left")
    assert checkpoint is not None
    assert checkpoint.endswith(f"checkpoint-{step}")
    again = make(folder / "left", *others(), **options)
    assert_equal(what_happened(again, again.train(resume_from_checkpoint=True).training_loss), wanted, "resumed")


@pytest.mark.parametrize("event", ["on_epoch_begin", "on_substep_end"])
def test_an_evaluation_at_the_start_is_not_done_again(event: str, tmp_path: Path) -> None:
    options = {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 4, "gradient_accumulation_steps": 2}
    assert_goes_on_exactly(tmp_path, Signals([event], 1), step=0, **options)


def test_an_evaluation_at_the_start_is_done_by_the_resume(tmp_path: Path) -> None:
    options = {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 4}
    assert_goes_on_exactly(tmp_path, Signals(["on_prediction_step"], 2), step=0, **options)


def test_an_evaluation_of_a_callback_ends_before_the_run_is_left(tmp_path: Path) -> None:
    assert_goes_on_exactly(tmp_path, Signals(["on_prediction_step"], 2), step=3)


def test_patience_is_not_lost_twice_to_one_evaluation(tmp_path: Path) -> None:
    """The first of two sets was told to the callbacks when the signal came; a resume evaluates both again."""
    options = {
        "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2,
        "eval_dataset": {"one": RegressionData(8), "other": RegressionData(8, seed=1)},
        "metric_for_best_model": "eval_one_loss", "load_best_model_at_end": True,
    }  # fmt: skip
    assert_goes_on_exactly(tmp_path, Signals(["on_evaluate"], 4), step=4, **options)


def test_a_step_number_that_an_earlier_call_saved_is_not_saved_yet(tmp_path: Path) -> None:
    trainer = make(tmp_path / "first", save_strategy="steps", save_steps=5)
    trainer.train()
    trainer.args.output_dir, trainer.args.save_strategy = str(tmp_path / "second"), "no"
    trainer.args.max_steps = 20
    trainer.add_callback(Signals(["on_step_begin"], 10))
    with pytest.raises(Preempted):
        trainer.train()
    assert get_last_checkpoint(tmp_path / "second") is not None
