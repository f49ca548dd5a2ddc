"""The example, as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import optuna

from tests.conftest import ROOT


def search(folder: Path, trials: int) -> str:
    command = [
        sys.executable,
        str(ROOT / "examples" / "search.py"),
        "--output-dir",
        str(folder),
        "--trials",
        str(trials),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_twelve_trials(tmp_path: Path) -> None:
    out = search(tmp_path / "run", 12)
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path}/run/study.db")
    assert len(study.trials) == 12
    assert {each.state.name for each in study.trials} <= {"COMPLETE", "PRUNED"}
    assert study.best_value > 0.95
    assert f"accuracy {study.best_value:.4f}, again from its checkpoint {study.best_value:.4f}" in out
    assert len(list((tmp_path / "run").glob("run-*/checkpoint-*"))) == 1
