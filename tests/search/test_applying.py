"""Hyperparameters of a trial, checked and applied as if a user had typed them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from onward import TrainingArguments
from onward.errors import MissingDependency, UnknownArgument, UsageError
from onward.search import choose_backend
from onward.search.applying import apply
from onward.search.spaces import default_objective
from onward.types import SchedulerType
from tests.search.trainers import make_trainer


def arguments(**given: Any) -> TrainingArguments:
    return TrainingArguments(output_dir="out", report_to="none", use_cpu=True, **given)


@pytest.mark.parametrize(
    ("given", "name", "wanted"),
    [
        ({"learning_rate": 1}, "learning_rate", 1.0),
        ({"learning_rate": np.float32(0.5)}, "learning_rate", 0.5),
        ({"per_device_train_batch_size": 16.0}, "per_device_train_batch_size", 16),
        ({"per_device_train_batch_size": np.int64(16)}, "per_device_train_batch_size", 16),
        ({"bf16": np.bool_(True)}, "mixed_precision", "bf16"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type", SchedulerType.COSINE),
        ({"neftune_noise_alpha": None}, "neftune_noise_alpha", None),
        ({"gradient_checkpointing": True}, "activation_checkpointing", True),
        ({"lr_scheduler_kwargs": {"num_cycles": 2}}, "lr_scheduler_kwargs", {"num_cycles": 2}),
        ({"lr_scheduler_kwargs.num_cycles": 2}, "lr_scheduler_kwargs", {"num_cycles": 2, "last_epoch": -1}),
    ],
)
def test_values_become_what_the_argument_is(given: dict[str, Any], name: str, wanted: Any) -> None:
    args = arguments(lr_scheduler_kwargs={"last_epoch": -1})
    apply(args, given)
    got = getattr(args, name)
    assert got == wanted
    assert type(got) is type(wanted)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": "1e-4"}, "learning_rate='1e-4', a str; expected float"),
        ({"learning_rate": float("nan")}, "expected a finite number"),
        ({"per_device_train_batch_size": 12.5}, "12.5, a float; expected int"),
        ({"per_device_train_batch_size": True}, "a bool; expected int"),
        ({"bf16": 1}, "a int; expected bool"),
        ({"label_smoothing_factor": 2.0}, "expected a value from 0 to 1"),
        ({"lr_scheduler_type": "cosin"}, "Did you mean 'cosine'"),
        ({"output_dir": "elsewhere"}, "expected it to stay"),
        ({"learning_rate.x": 1}, "not a dictionary"),
    ],
)
def test_what_cannot_work_changes_nothing(given: dict[str, Any], message: str) -> None:
    args = arguments()
    before = dict(vars(args))
    with pytest.raises(UsageError, match=message):
        apply(args, {"weight_decay": 0.5, **given})
    assert vars(args) == before


@pytest.mark.parametrize(
    ("name", "hint"), [("learning_rte", "Did you mean 'learning_rate'"), ("warmup_ratio", "It is now: warmup_steps")]
)
def test_an_unknown_name(name: str, hint: str) -> None:
    with pytest.raises(UnknownArgument, match=hint):
        apply(arguments(), {name: 0.1})


def test_taking_back() -> None:
    args = arguments()
    before = dict(vars(args))
    overrides = apply(args, {"bf16": True, "weight_decay": 0.5, "lr_scheduler_type": "cosine", "seed": 7})
    args.seed = 9  # by the user, in between
    overrides.take_back(args)
    assert vars(args) == before | {"seed": 9}


def test_stock_arguments_of_transformers_take_a_trial(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    args = transformers.TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    apply(args, {"learning_rate": 1, "weight_decay": 0.5})
    assert (args.learning_rate, args.weight_decay) == (1.0, 0.5)
    with pytest.raises(UnknownArgument, match="Did you mean 'weight_decay'"):
        apply(args, {"weight_dcay": 0.5})


@pytest.mark.parametrize("kind", ["dict", "optuna"])
def test_train_with_a_trial_outside_of_a_search(tmp_path: Path, kind: str) -> None:
    trial: Any = {"learning_rate": 0.05, "seed": 3}
    if kind == "optuna":
        study = optuna.create_study()
        study.enqueue_trial(trial)
        trial = study.ask()
        trial.suggest_float("learning_rate", 0.0, 1.0), trial.suggest_int("seed", 1, 9)
    trainer = make_trainer(tmp_path / "trial")
    trainer.train(trial=trial)
    alone = make_trainer(tmp_path / "alone", learning_rate=0.05, seed=3)
    alone.train()
    wanted = [line["loss"] for line in alone.state.log_history if "loss" in line]
    assert [line["loss"] for line in trainer.state.log_history if "loss" in line] == wanted
    assert trainer.state.trial_params == {"learning_rate": 0.05, "seed": 3}
    # The next trial starts from the arguments as they were.
    trainer.train(trial={"weight_decay": 0.5})
    assert (trainer.args.learning_rate, trainer.args.seed, trainer.args.weight_decay) == (0.01, 42, 0.5)


def test_a_batch_size_of_a_trial_is_trained_with(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.train(trial={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})
    assert trainer.state.train_batch_size == 4
    assert trainer.state.global_step == 8


def test_values_for_a_model_that_takes_none(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, model_init=lambda: None or make_trainer.__globals__["model_init"]())
    with pytest.raises(UsageError, match=r"model\.width for the model, but there is no model_init\(trial\)"):
        trainer.train(trial={"model.width": 8})


def test_what_is_no_trial(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train\(trial=\.\.\.\) got a int"):
        make_trainer(tmp_path).train(trial=3)


def test_the_default_objective() -> None:
    clock = {"eval_runtime": 3.0, "eval_samples_per_second": 7.0, "epoch": 2.0}
    assert default_objective({"eval_loss": 0.5, **clock}) == 0.5
    assert default_objective({"eval_loss": 0.5, "eval_f1": 0.25, "eval_accuracy": 0.5, **clock}) == 0.75
    with pytest.raises(UsageError, match="nothing to optimise"):
        default_objective(clock)


def test_a_backend_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import onward.search as room

    monkeypatch.setitem(room._PACKAGES, room.HPSearchBackend.RAY, "ray_that_is_not_there")
    with pytest.raises(MissingDependency, match=r"pip install 'onward\[ray\]'"):
        choose_backend("ray")
    assert choose_backend(None) == "optuna"
