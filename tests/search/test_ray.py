"""Searches with the real Ray Tune, on a cluster of two cores that Ray starts here."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onward import TrainerCallback
from onward.errors import UnknownArgument, UsageError
from tests.search.trainers import make_trainer, model_init
from tests.tiny import RegressionData

ray = pytest.importorskip("ray")
FATAL = 0.5
"""A learning rate whose trial fails."""


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            num_cpus=2,
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            logging_level="error",
            log_to_driver=False,
            configure_logging=False,
            _temp_dir="/tmp/onward-ray",
        )
    yield
    ray.shutdown()


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def space(_: Any) -> dict[str, Any]:
    from ray import tune

    return {"learning_rate": tune.grid_search([0.001, 0.03, FATAL]), "weight_decay": tune.uniform(0.0, 0.1)}


@pytest.mark.filterwarnings("ignore")
def test_a_search(tmp_path: Path) -> None:
    # All of these are local to this function: a worker cannot import them.
    class Counted(RegressionData):
        def __getstate__(self) -> dict[str, Any]:
            with open(tmp_path / "pickled", "a") as file:
                file.write("x")
            return self.__dict__

    class Fail(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if args.learning_rate == FATAL:
                raise MemoryError("no room")

    trainer = make_trainer(tmp_path, callbacks=[Fail()], model_init=lambda: model_init())
    trainer.train_dataset = Counted(32)
    best = trainer.hyperparameter_search(space, n_trials=1, backend="ray", verbose=0)
    assert (tmp_path / "pickled").read_text() == "x", "the data go into the object store once, not once per trial"
    told = rows(tmp_path, "trials.jsonl")[1:]
    assert {row["hyperparameters"]["learning_rate"]: (row["state"], row["error"]) for row in told} == {
        0.001: ("complete", None),
        0.03: ("complete", None),
        FATAL: ("failed", "MemoryError: no room"),
    }
    assert best.hyperparameters["learning_rate"] == 0.03
    assert trainer.args.learning_rate == 0.03
    # The trial is what training with its arguments gives.
    alone = make_trainer(tmp_path / "alone", **best.hyperparameters)
    alone.train()
    assert alone.evaluate()["eval_loss"] == best.objective
    # The results outlive the driver, and only the best trial's checkpoints stay.
    assert {row["trial"] for row in rows(tmp_path, "metrics.jsonl")} == {
        f"run-{each.trial_id}" for each in best.run_summary.trials
    }
    assert len(list(tmp_path.glob("ray/*/*/checkpoint_*"))) == 1
    assert not list(tmp_path.glob("run-*/checkpoint-*"))
    later = make_trainer(tmp_path)
    later.load_best_trial()
    assert later.evaluate()["eval_loss"] == best.objective


@pytest.mark.filterwarnings("ignore")
def test_the_environment_says_what_of_a_trial_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`RAY_SCOPE`, as with transformers: here the lowest loss of all evaluations instead of the last one."""
    monkeypatch.setenv("RAY_SCOPE", "all")
    trainer = make_trainer(tmp_path)
    best = trainer.hyperparameter_search(
        lambda _: {"learning_rate": 0.001},
        compute_objective=lambda metrics: -metrics["eval_loss"],  # grows worse
        n_trials=1,
        backend="ray",
        verbose=0,
    )
    (row,) = rows(tmp_path, "trials.jsonl")[1:]
    reported = row["intermediate"]
    assert row["values"] == [min(reported.values())] == [reported["2"]]
    assert best.objective == reported["8"]
    monkeypatch.setenv("RAY_SCOPE", "best")
    with pytest.raises(UsageError, match="RAY_SCOPE got 'best'; expected one of last, all, avg"):
        trainer.hyperparameter_search(lambda _: {"learning_rate": 0.001}, n_trials=1, backend="ray")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_asha_stops_what_is_worse(tmp_path: Path) -> None:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    trainer = make_trainer(tmp_path, num_train_epochs=4, eval_steps=4, save_steps=8)
    best = trainer.hyperparameter_search(
        lambda _: {"learning_rate": tune.grid_search([0.05, 0.04, 1e-6, 1e-7])},
        n_trials=1,
        backend="ray",
        scheduler=ASHAScheduler(grace_period=1, reduction_factor=2, max_t=4, time_attr="training_iteration"),
        verbose=0,
        max_concurrent_trials=1,
    )
    reported = {each.config["learning_rate"]: each.last_result["step"] for each in best.run_summary.trials}
    assert reported[0.05] == 16
    assert reported[1e-6] < 16
    assert reported[1e-7] < 16
    assert best.hyperparameters["learning_rate"] in (0.05, 0.04)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_population_based_training_goes_on_from_another_trial(tmp_path: Path) -> None:
    from ray import tune
    from ray.tune.schedulers import PopulationBasedTraining

    # The bad trial learns nothing, so that it must take over the good one's weights, with a learning rate of its own.
    trainer = make_trainer(tmp_path, num_train_epochs=4, eval_steps=4, save_steps=4, lr_scheduler_type="constant")
    best = trainer.hyperparameter_search(
        lambda _: {"learning_rate": tune.grid_search([0.05, 1e-7])},
        n_trials=1,
        backend="ray",
        scheduler=PopulationBasedTraining(
            time_attr="training_iteration",
            perturbation_interval=2,
            hyperparam_mutations={"learning_rate": [0.05, 0.02]},
            quantile_fraction=0.5,
            resample_probability=1.0,
            synch=True,
        ),
        verbose=0,
        max_failures=0,
    )
    assert {each.status for each in best.run_summary.trials} == {"TERMINATED"}
    logged = rows(tmp_path, "metrics.jsonl")
    bad = {row["trial"] for row in logged if row.get("learning_rate") == 1e-7}
    assert len(bad) == 1
    story = [row for row in logged if row["trial"] in bad]
    rates = [row["learning_rate"] for row in story if "loss" in row]
    # It began with its own rate and went on with another, from step 8 of the other trial.
    assert rates[0] == 1e-7
    assert set(rates[-4:]) <= {0.05, 0.02}
    assert [row["step"] for row in story if row.get("event") == "train_begin"][:2] == [0, 8]
    losses = {row["step"]: row["eval_loss"] for row in story if "eval_loss" in row}
    assert losses[16] < 0.5 * losses[4]


def test_a_scheduler_needs_evaluations(tmp_path: Path) -> None:
    from ray.tune.schedulers import ASHAScheduler

    trainer = make_trainer(tmp_path, eval_strategy="no")
    with pytest.raises(UsageError, match="decides by evaluations"):
        trainer.hyperparameter_search(space, backend="ray", scheduler=ASHAScheduler())


def test_what_cannot_work_is_said_before_anything_starts(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    with pytest.raises(UsageError, match="Did you mean 'scheduler'"):
        trainer.hyperparameter_search(space, backend="ray", schedulr=None)
    with pytest.raises(UnknownArgument, match="Did you mean 'learning_rate'"):
        make_trainer(tmp_path, model_init=lambda: model_init()).hyperparameter_search(
            lambda _: {"learning_rat": 0.1}, backend="ray"
        )
    lock = threading.Lock()
    with pytest.raises(UsageError, match="Ray sends model_init to its workers, and it cannot be pickled"):
        make_trainer(tmp_path, model_init=lambda: lock and model_init()).hyperparameter_search(space, backend="ray")


def test_one_objective_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one objective"):
        make_trainer(tmp_path).hyperparameter_search(space, backend="ray", direction=["minimize", "maximize"])


def test_a_trainer_that_cannot_be_rebuilt(tmp_path: Path) -> None:
    from onward import Trainer

    class Narrow(Trainer):
        def __init__(self, args: Any, model_init: Any, callbacks: Any, train_dataset: Any, eval_dataset: Any) -> None:
            super().__init__(
                args=args, model_init=model_init, train_dataset=train_dataset, eval_dataset=eval_dataset,
                compute_metrics=len,
            )  # fmt: skip

    trainer = make_trainer(tmp_path, trainer_class=Narrow)
    with pytest.raises(UsageError, match=r"its constructor does not take.*compute_metrics"):
        trainer.hyperparameter_search(space, backend="ray")
