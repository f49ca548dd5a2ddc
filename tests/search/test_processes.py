"""Searches that are killed, that several processes share, and that run on two ranks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.conftest import ROOT
from tests.search.trainers import make_trainer, space


def start(out: Path, storage: str, *options: str, ranks: int = 1) -> subprocess.Popen[str]:
    launch = [sys.executable, "-m"]
    if ranks > 1:
        launch += ["torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone", "-m"]
    return subprocess.Popen(
        [*launch, "tests.search.run_search", str(out), storage, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(*arguments: Any, **keywords: Any) -> tuple[int, str]:
    process = start(*arguments, **keywords)
    output, _ = process.communicate(timeout=200)
    return process.returncode, output


def trials_of(storage: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="study", storage=storage).trials


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[optuna.trial.FrozenTrial]:
    folder = tmp_path_factory.mktemp("whole")
    trainer = make_trainer(folder)
    options: dict[str, Any] = {"sampler": optuna.samplers.RandomSampler(seed=0), "study_name": "study"}
    return trainer.hyperparameter_search(space, n_trials=2, **options).run_summary.trials


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_trial_that_was_cut_off_goes_on_from_its_checkpoint(
    tmp_path: Path, undisturbed: list[optuna.trial.FrozenTrial], number: int, code: int
) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    ended, output = run(tmp_path / "out", storage, "--kill", "run-1:5", "--signal", str(int(number)))
    assert ended == code, output
    assert [each.state.name for each in trials_of(storage)] == ["COMPLETE", "RUNNING"]
    ended, output = run(tmp_path / "out", storage)
    assert ended == 0, output
    assert "Trial 1 was cut off; it goes on from" in output
    trials = trials_of(storage)
    assert [each.state.name for each in trials] == ["COMPLETE"] * 3
    # To the bit what it would have been.
    assert trials[1].params == undisturbed[1].params
    assert trials[1].intermediate_values == undisturbed[1].intermediate_values
    assert trials[1].value == undisturbed[1].value
    begun = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    resumed = [row["step"] for row in begun if row.get("event") == "train_begin" and row["trial"] == "run-1"]
    # A signal that can be caught saves first; a kill may come before the save of step 4 was on disk.
    assert resumed in ([[0, 4], [0, 2]] if number == signal.SIGKILL else [[0, 6]])


def test_a_trial_that_was_cut_off_before_its_first_checkpoint_failed(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    ended, output = run(tmp_path / "out", storage, "--kill", "run-0:1")
    assert ended == -9, output
    options: dict[str, Any] = {"storage": storage, "study_name": "study"}
    study = make_trainer(tmp_path / "out").hyperparameter_search(space, n_trials=2, **options).run_summary
    assert [each.state.name for each in study.trials] == ["FAIL", "COMPLETE"]
    assert "before its first whole checkpoint" in study.trials[0].user_attrs["onward:error"]


def test_two_processes_share_a_study(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="study", storage=storage)  # two that create it at once is SQLite's business
    processes = [start(tmp_path / "out", storage, "--trials", "6", "--meet", "2") for _ in range(2)]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    trials = trials_of(storage)
    assert len(trials) == 6
    assert {each.state.name for each in trials} <= {
        "COMPLETE",
        "PRUNED",
    }  # the default pruner sees both processes' trials
    assert len({each.user_attrs["onward:owner"] for each in trials}) == 2


def test_two_ranks_train_and_prune_the_same_trials(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    ended, output = run(tmp_path / "out", storage, "--prune", ranks=2)
    assert ended == 0, output
    trials = trials_of(storage)
    assert [each.state.name for each in trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    first, second = (json.loads((tmp_path / "out" / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert [each[:2] for each in first["seen"]] == [[0, 2], [0, 4], [1, 2], [1, 4], [2, 2], [2, 4]]
    assert [each[2] for each in first["seen"][::2]] == [each.params["learning_rate"] for each in trials]
