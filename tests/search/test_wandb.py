"""W&B sweeps as far as the real package goes without its server: offline runs, one for each trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onward.errors import TrainingFailed, UsageError
from onward.search import HPSearchBackend, wandb_sweep
from onward.search.request import Request
from onward.search.spaces import default_objective
from tests.search.trainers import make_trainer, model_init

wandb = pytest.importorskip("wandb")


def sweep(_: Any) -> dict[str, Any]:
    return {"method": "grid", "parameters": {"learning_rate": {"values": [0.001, 0.03]}}}


def trials(trainer: Any, **options: Any) -> wandb_sweep.Trials:
    request = Request(sweep, None, 2, "minimize", None, options)
    trainer.hp_space, trainer.compute_objective = sweep, default_objective
    trainer.hp_search_backend = HPSearchBackend.WANDB
    return wandb_sweep.Trials(trainer, request, "sweep-id")


def test_trials_in_offline_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trainer = make_trainer(tmp_path, model_init=lambda: model_init())
    search = trials(trainer)
    for config in ({"learning_rate": 0.001}, {"learning_rate": 0.03}, {"learning_rat": 1.0}):
        with wandb.init(project="onward", dir=str(tmp_path), config=config):  # what the agent does
            search.run_one()
    rows = list(search.log.rows.values())
    assert [row.state for row in rows] == ["complete", "complete", "failed"]
    assert [list(row.intermediate) for row in rows] == [["2", "4", "6", "8"]] * 2 + [[]]
    assert "Did you mean 'learning_rate'" in str(rows[2].error)
    best = search.finish()
    assert best.hyperparameters == {"learning_rate": 0.03}
    assert trainer.args.learning_rate == 0.03
    assert {path.parent.name for path in tmp_path.glob("run-*/checkpoint-*")} == {f"run-{best.run_id}"}
    trainer.load_best_trial()
    assert trainer.evaluate()["eval_loss"] == best.objective


def test_the_configuration_of_the_sweep(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.hp_space = sweep
    request = Request(sweep, None, 2, "maximize", None, {"name": "mine", "metric": "eval/f1"})
    configuration = wandb_sweep.sweep_configuration(trainer, request)
    assert configuration == {**sweep(None), "name": "mine", "metric": {"name": "eval/f1", "goal": "maximize"}}


def test_unknown_options_and_no_result(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    with pytest.raises(UsageError, match="Did you mean 'sweep_id'"):
        trainer.hyperparameter_search(sweep, backend="wandb", sweepid="x")
    with pytest.raises(TrainingFailed, match="None of 0 trials"):
        trials(trainer).finish()
