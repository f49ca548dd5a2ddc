"""A search with the real Optuna, in memory, in SQLite and in a journal file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from onward import BestRun, EarlyStoppingCallback, TrainerCallback, TrainingArguments
from onward.errors import TrainingFailed, UnknownArgument, UsageError
from onward.search import optuna_study
from tests.search.trainers import make_trainer, model_init, space


def sampler(seed: int = 0) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def test_the_best_of_four_trials(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    best = trainer.hyperparameter_search(space, n_trials=4, backend="optuna", sampler=sampler())
    assert isinstance(best, BestRun)
    assert set(best.hyperparameters) == {"learning_rate", "weight_decay"}
    study = best.run_summary
    assert [each.state.name for each in study.trials] == ["COMPLETE"] * 4
    assert best.objective == min(each.value for each in study.trials)
    # Each evaluation was reported, by its step.
    assert list(study.trials[0].intermediate_values) == [2, 4, 6, 8]
    assert study.trials[0].intermediate_values[8] == study.trials[0].value
    # Afterwards the trainer has the best trial's arguments, and only its checkpoints are on disk.
    assert trainer.args.learning_rate == best.hyperparameters["learning_rate"]
    assert {path.parent.name for path in tmp_path.glob("*/checkpoint-*")} == {f"run-{best.run_id}"}


def test_a_trial_is_what_training_with_its_arguments_gives(tmp_path: Path) -> None:
    """No trial depends on what was trained before it: seeds, arguments and callbacks are its own."""

    def seeds(trial: Any) -> dict[str, Any]:
        return {"seed": trial.suggest_int("seed", 1, 40), **({"label_smoothing_factor": 0} if trial.number else {})}

    trainer = make_trainer(tmp_path / "search", learning_rate=0.03)
    study = trainer.hyperparameter_search(seeds, n_trials=3, sampler=sampler()).run_summary
    for each in study.trials:
        alone = make_trainer(tmp_path / f"alone-{each.number}", learning_rate=0.03, seed=each.params["seed"])
        alone.train()
        losses = [line["eval_loss"] for line in alone.state.log_history if "eval_loss" in line]
        assert list(each.intermediate_values.values()) == losses


def test_arguments_of_one_trial_do_not_leak_into_the_next(tmp_path: Path) -> None:
    seen = []

    def one_each(trial: Any) -> dict[str, Any]:
        return [{"weight_decay": 0.5}, {"max_grad_norm": 0.1}, {"bf16": True}, {}][trial.number]

    class Look(TrainerCallback):
        def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append((args.weight_decay, args.max_grad_norm, args.bf16, args.mixed_precision))

    make_trainer(tmp_path, callbacks=[Look()]).hyperparameter_search(one_each, n_trials=4)
    assert seen == [(0.5, 1.0, False, "no"), (0.0, 0.1, False, "no"), (0.0, 1.0, True, "bf16"), (0.0, 1.0, False, "no")]


def test_lost_patience_is_forgotten(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2, early_stopping_threshold=1e6)],
        load_best_model_at_end=True,
    )
    study = trainer.hyperparameter_search(space, n_trials=3, sampler=sampler()).run_summary
    assert [list(each.intermediate_values) for each in study.trials] == [[2, 4, 6]] * 3


def test_pruning(tmp_path: Path) -> None:
    class Prune(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return trial.number > 0 and trial.last_step == 4

    trainer = make_trainer(tmp_path)
    study = trainer.hyperparameter_search(space, n_trials=3, pruner=Prune(), sampler=sampler()).run_summary
    assert [each.state.name for each in study.trials] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert [list(each.intermediate_values) for each in study.trials] == [[2, 4, 6, 8], [2, 4], [2, 4]]
    assert {path.parent.name for path in tmp_path.glob("*/checkpoint-*")} == {"run-0"}


def test_a_trial_that_raises_is_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    class Fail(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.trial_name == "run-1":
                raise MemoryError("no room")

    trainer = make_trainer(tmp_path, callbacks=[Fail()])
    best = trainer.hyperparameter_search(space, n_trials=3, sampler=sampler())
    study = best.run_summary
    assert [each.state.name for each in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert study.trials[1].user_attrs["onward:error"] == "MemoryError: no room"
    rows = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert [row.get("error") for row in rows] == [None, None, "MemoryError: no room", None]


def test_catch_names_what_may_fail(tmp_path: Path) -> None:
    class Fail(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise KeyError("lost") if state.trial_name == "run-1" else OSError("late")

    trainer = make_trainer(tmp_path, callbacks=[Fail()])
    with pytest.raises(KeyError, match="lost"):
        trainer.hyperparameter_search(space, n_trials=3, catch=(OSError,), storage=f"sqlite:///{tmp_path}/s.db")
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/s.db")
    assert [each.state.name for each in study.trials] == ["FAIL", "FAIL"]


def test_a_search_in_which_nothing_ends_well(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    with pytest.raises(TrainingFailed, match=r"None of 2 trials ended well: 2 failed, 0 were pruned.*nan"):
        trainer.hyperparameter_search(space, lambda metrics: float("nan"), n_trials=2)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_the_same_call_again_finishes_the_study(tmp_path: Path, kind: str) -> None:
    storage = f"sqlite:///{tmp_path}/study.db" if kind == "sqlite" else str(tmp_path / "study.journal")

    def search(n_trials: int) -> optuna.Study:
        trainer = make_trainer(tmp_path / "out")
        return trainer.hyperparameter_search(space, n_trials=n_trials, storage=storage).run_summary

    assert len(search(2).trials) == 2
    assert len(search(5).trials) == 5
    assert len(search(5).trials) == 5


def test_a_study_of_other_directions_is_not_continued(tmp_path: Path) -> None:
    storage = str(tmp_path / "study.journal")
    make_trainer(tmp_path / "out").hyperparameter_search(space, n_trials=1, storage=storage)
    with pytest.raises(UsageError, match=r"has the directions \['minimize'\]; got \['maximize'\]"):
        make_trainer(tmp_path / "out").hyperparameter_search(space, n_trials=2, direction="maximize", storage=storage)


def test_several_objectives(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)

    def both(metrics: dict[str, float]) -> tuple[float, float]:
        return metrics["eval_loss"], trainer.args.weight_decay

    front = trainer.hyperparameter_search(
        space, both, n_trials=4, direction=["minimize", "maximize"], sampler=sampler(3)
    )
    assert isinstance(front, list)
    study = front[0].run_summary
    assert {each.run_id for each in front} == {str(each.number) for each in study.best_trials}
    kept = {path.parent.name for path in tmp_path.glob("*/checkpoint-*")}
    assert kept == {f"run-{each.run_id}" for each in front}
    assert all(len(each.objective) == 2 for each in front)


def test_an_objective_of_the_wrong_length_fails_the_trial(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    with pytest.raises(TrainingFailed, match="expected 2 finite"):
        trainer.hyperparameter_search(space, n_trials=1, direction=["minimize", "maximize"])


def test_threads(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    best = trainer.hyperparameter_search(space, n_trials=5, n_jobs=2, sampler=sampler())
    study = best.run_summary
    assert [each.state.name for each in study.trials] == ["COMPLETE"] * 5
    assert all(list(each.intermediate_values) == [2, 4, 6, 8] for each in study.trials)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {row["trial"] for row in rows} == {f"run-{number}" for number in range(5)}
    assert trainer.args.learning_rate == best.hyperparameters["learning_rate"]


def test_timeout_starts_no_more_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search's clock is put forward: on a loaded machine a short limit is over before the first trial begins."""
    passed = 0.0

    class Slow(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            nonlocal passed
            passed += 3600.0

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed)
    monkeypatch.setattr(optuna_study, "time", clock)
    trainer = make_trainer(tmp_path, callbacks=[Slow()])
    study = trainer.hyperparameter_search(space, n_trials=50, timeout=3600.0, sampler=sampler()).run_summary
    assert len(study.trials) == 1


@pytest.mark.parametrize(("keep", "wanted"), [("all", {"run-0", "run-1", "run-2"}), ("none", set())])
def test_which_checkpoints_stay(tmp_path: Path, keep: str, wanted: set[str]) -> None:
    make_trainer(tmp_path, keep_trials=keep).hyperparameter_search(space, n_trials=3)
    assert {path.parent.name for path in tmp_path.glob("*/checkpoint-*")} == wanted


def test_the_folder_never_holds_more_than_two_trials(tmp_path: Path) -> None:
    most = 0

    class Count(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            nonlocal most
            most = max(most, len({path.parent for path in tmp_path.glob("*/checkpoint-*")}))

    make_trainer(tmp_path, callbacks=[Count()]).hyperparameter_search(space, n_trials=6, sampler=sampler())
    assert most == 2  # the best so far, and the one that is being trained


def test_logs_say_which_trial_they_are_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(tmp_path, disable_tqdm=False)
    trainer.hyperparameter_search(space, n_trials=2, hp_name=lambda trial: f"try-{trial.number}")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["trial"] for row in rows] == sorted(row["trial"] for row in rows)
    assert {row["trial"] for row in rows} == {"try-0", "try-1"}
    printed = [line for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert any("try-0" in line for line in printed)
    assert any("try-1" in line for line in printed)


def test_load_best_trial(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    best = trainer.hyperparameter_search(space, n_trials=3, sampler=sampler())
    trainer.load_best_trial()
    assert trainer.evaluate()["eval_loss"] == best.objective
    # Another process finds it too.
    later = make_trainer(tmp_path)
    later.load_best_trial()
    assert later.args.learning_rate == best.hyperparameters["learning_rate"]
    assert later.evaluate()["eval_loss"] == best.objective


def test_model_init_reads_the_trial(tmp_path: Path) -> None:
    seen = []

    def init(trial: Any) -> Any:
        if trial is not None:
            seen.append(trial.params["model.dropout"])
        return model_init()

    def with_dropout(trial: Any) -> dict[str, Any]:
        return {"learning_rate": 0.01, "model.dropout": trial.suggest_float("model.dropout", 0.0, 0.5)}

    trainer = make_trainer(tmp_path, model_init=init)
    study = trainer.hyperparameter_search(with_dropout, n_trials=2).run_summary
    assert seen == [each.params["model.dropout"] for each in study.trials]


def test_a_name_that_only_model_init_reads_is_left_to_it_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    def init(trial: Any) -> Any:
        seen.append(None if trial is None else trial.params["width"])
        return model_init()

    def with_width(trial: Any) -> dict[str, Any]:
        return {"weight_decay": 0.1, "width": trial.suggest_int("width", 1, 8)}

    trainer = make_trainer(tmp_path, model_init=init)
    best = trainer.hyperparameter_search(with_width, n_trials=2)
    assert [each for each in seen if each is not None] == [each.params["width"] for each in best.run_summary.trials]
    assert trainer.args.weight_decay == 0.1
    assert not hasattr(trainer.args, "width")
    assert "sets 'width', which is no argument of TrainingArguments. It is left to model_init." in caplog.text
    assert "'weight_decay'" not in caplog.text
    with pytest.raises(UnknownArgument, match="It is now: warmup_steps"):
        trainer.hyperparameter_search(lambda trial: {"warmup_ratio": 0.1}, n_trials=1)


def test_an_unknown_name_ends_the_search_at_once(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, model_init=lambda: model_init())
    with pytest.raises(UnknownArgument, match=r"'learning_rat'.*Did you mean 'learning_rate'"):
        trainer.hyperparameter_search(lambda trial: {"learning_rat": 1e-3}, n_trials=5)


def test_two_trials_of_one_name_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    study = trainer.hyperparameter_search(space, n_trials=2, hp_name=lambda trial: "same").run_summary
    assert "for two trials" in study.trials[1].user_attrs["onward:error"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_trials": 0}, "n_trials got 0"),
        ({"direction": "minimise"}, "Did you mean 'minimize'"),
        ({"samplr": None}, "Did you mean 'sampler'"),
        ({"backend": "optun"}, "Did you mean 'optuna'"),
    ],
)
def test_what_cannot_work(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_trainer(tmp_path).hyperparameter_search(space, **options)


def test_a_model_is_not_enough(tmp_path: Path) -> None:
    from onward import Trainer

    trainer = Trainer(model=model_init(), args=TrainingArguments(output_dir=str(tmp_path), report_to="none"))
    with pytest.raises(RuntimeError, match="model_init"):
        trainer.hyperparameter_search(space)
