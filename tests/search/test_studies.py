"""What users of Optuna bring along: finite samplers, callbacks, queued trials, studies that were begun differently."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from onward import TrainerCallback
from onward.errors import UsageError
from onward.search.optuna_study import OWNER
from tests.search.trainers import make_trainer, model_init, space


def search(folder: Path, hp_space: Any = space, **options: Any) -> optuna.Study:
    study = make_trainer(folder, save_strategy="no").hyperparameter_search(hp_space, **options).run_summary
    assert isinstance(study, optuna.Study)
    return study


def test_trials_are_those_of_transformers(tmp_path: Path) -> None:
    """The same sampler, pruner and space: the same values, intermediate values and states, to the bit."""
    transformers = pytest.importorskip("transformers")
    import onward

    studies = []
    for library in (transformers, onward):
        storage = f"sqlite:///{tmp_path}/{library.__name__}.db"
        args = library.TrainingArguments(
            output_dir=str(tmp_path / library.__name__), num_train_epochs=2, eval_strategy="steps", eval_steps=2,
            save_strategy="no", logging_steps=2, report_to="none", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        like = make_trainer(tmp_path / "data")
        trainer = library.Trainer(
            model_init=model_init, args=args, train_dataset=like.train_dataset, eval_dataset=like.eval_dataset
        )
        best = trainer.hyperparameter_search(
            lambda trial: {
                **space(trial),
                "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [4, 8]),
            },
            n_trials=6,
            backend="optuna",
            storage=storage,
            study_name="s",
            sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=2),
            pruner=optuna.pruners.PercentilePruner(10.0, n_startup_trials=1),
        )
        trials = optuna.load_study(study_name="s", storage=storage).trials
        studies.append((best[:3], [(t.params, t.state, t.values, t.intermediate_values) for t in trials]))
    assert studies[0] == studies[1]
    assert {state.name for _, state, _, _ in studies[0][1]} == {"COMPLETE", "PRUNED"}


def test_a_finite_space_ends_the_search(tmp_path: Path) -> None:
    grid = {"learning_rate": [0.001, 0.01], "weight_decay": [0.0, 0.1]}
    storage = f"sqlite:///{tmp_path}/new/study.db"  # in a folder that is not there yet
    for n_trials, wanted in ((3, 3), (20, 4), (20, 4)):
        sampler = optuna.samplers.GridSampler(grid, seed=0)
        study = search(tmp_path / "out", n_trials=n_trials, storage=storage, sampler=sampler)
        assert len(study.trials) == wanted
        assert len({tuple(each.params.values()) for each in study.trials}) == wanted
    with pytest.raises(RuntimeError, match="supposed to be invoked inside"):
        study.stop()  # is Optuna's own again


def test_callbacks_and_queued_trials(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    queue = optuna.create_study(study_name="out", storage=storage)
    queue.enqueue_trial({"learning_rate": 0.0123})
    seen: list[tuple[int, str]] = []
    study = search(
        tmp_path / "out",
        n_trials=9,
        storage=storage,
        callbacks=[
            lambda study, trial: seen.append((trial.number, trial.state.name)),
            optuna.study.MaxTrialsCallback(2),
        ],
    )
    assert seen == [(0, "COMPLETE"), (1, "COMPLETE")]
    assert study.trials[0].params["learning_rate"] == 0.0123


def test_a_study_that_goes_on_with_another_space(tmp_path: Path) -> None:
    """The best trial may be of the former space: its hyperparameters are those that were applied then."""
    storage = f"sqlite:///{tmp_path}/study.db"
    search(
        tmp_path / "out",
        lambda trial: {"learning_rate": 10 ** trial.suggest_float("exponent", -1.4, -1.2)},
        n_trials=1,
        storage=storage,
    )
    trainer = make_trainer(tmp_path / "out", save_strategy="no")
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-7, 1e-6)}, n_trials=2, storage=storage
    )
    assert best.run_id == "0"
    assert trainer.args.learning_rate == 10 ** best.hyperparameters["exponent"]


def test_a_new_search_takes_nothing_of_an_earlier_one(tmp_path: Path) -> None:
    """Both name their first trial run-0; the earlier one's checkpoints have the higher steps."""
    make_trainer(tmp_path, num_train_epochs=4).hyperparameter_search(space, n_trials=1)
    assert (tmp_path / "run-0" / "checkpoint-16").is_dir()
    trainer = make_trainer(tmp_path)
    best = trainer.hyperparameter_search(space, n_trials=1)
    assert sorted(path.name for path in (tmp_path / "run-0").iterdir()) == [
        f"checkpoint-{step}" for step in (2, 4, 6, 8)
    ]
    trainer.load_best_trial()
    assert trainer.evaluate()["eval_loss"] == best.objective


def test_two_studies_in_memory_may_have_one_name(tmp_path: Path) -> None:
    for n_trials in (3, 1):
        trainer = make_trainer(tmp_path)
        best = trainer.hyperparameter_search(space, n_trials=n_trials, study_name="mine")
    trainer.load_best_trial()
    assert trainer.args.learning_rate == best.hyperparameters["learning_rate"]


def test_without_a_model_the_trainer_says_how_to_get_one(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.hyperparameter_search(space, n_trials=1)
    with pytest.raises(UsageError, match=r"load_best_trial\(\)"):
        trainer.evaluate()
    with pytest.raises(UsageError, match=r"load_best_trial\(\)"):
        trainer.save_model()


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_heartbeat_tells_of_a_death_on_another_machine(tmp_path: Path) -> None:
    class Interrupt(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                trainer._flush_saves(collective=False)
                raise KeyboardInterrupt

    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/s.db", heartbeat_interval=1, grace_period=1)
    options: dict[str, Any] = {"storage": storage, "study_name": "study", "n_trials": 1}
    trainer = make_trainer(tmp_path / "out", callbacks=[Interrupt()])
    with pytest.raises(KeyboardInterrupt):
        trainer.hyperparameter_search(space, **options)
    study = optuna.load_study(study_name="study", storage=storage)
    study._storage.set_trial_user_attr(study.trials[0]._trial_id, OWNER, "elsewhere-boot-namespace-1-1")
    deadline = time.monotonic() + 60
    while not storage._get_stale_trial_ids(study._study_id) and time.monotonic() < deadline:
        time.sleep(0.1)
    trainer = make_trainer(tmp_path / "out")
    trainer.hyperparameter_search(space, **options)
    assert [each.state.name for each in study.trials] == ["COMPLETE"]
    assert list(study.trials[0].intermediate_values) == [2, 4, 6, 8]
