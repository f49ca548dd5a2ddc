"""The page about a search, from what the search left on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from onward import TrainerCallback
from onward.cli.main import app
from onward.search import log
from tests.search.trainers import make_trainer, space

pytest.importorskip("plotly")


class FailOnce(TrainerCallback):
    def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
        if state.trial_name == "run-1":  # type: ignore[attr-defined]
            raise ValueError("<broken>")


def test_report_of_a_search(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callbacks=[FailOnce()], eval_steps=4, save_strategy="no")
    best = trainer.hyperparameter_search(space, n_trials=4)
    done = CliRunner().invoke(app, ["search-report", str(tmp_path)])
    assert done.exit_code == 0, done.output
    page = Path(done.output.strip()).read_text(encoding="utf-8")
    assert "optuna, objective 0: minimize; 3 complete, 0 pruned, 1 failed" in page
    assert page.count("Plotly.newPlot") == 3  # history, importance, parallel coordinates
    assert "Not drawn" not in page
    assert f'<tr class="best"><td>{best.run_id}</td>' in page
    assert "ValueError: &lt;broken&gt;" in page
    assert 'src="http' not in page  # opens without a network


def test_two_objectives_and_values_without_distributions(tmp_path: Path) -> None:
    head = log.SearchLog("study", "ray", ["minimize", "maximize"], {})
    log.begin(tmp_path, head, 5)
    for number, rate in enumerate([1e-5, 1e-4, 1e-3, 1e-2, 1e-1]):
        row = log.TrialRow(
            str(number), f"run-{number}", "complete", [1 / (number + 1), number % 3], {"lr": rate, "sgd": number > 2}
        )
        log.append(tmp_path, "study", row)
    done = CliRunner().invoke(app, ["search-report", str(tmp_path), "--output", str(tmp_path / "r.html")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("Plotly.newPlot") == 6
    assert "of objective 1 (maximize)" in page


def test_a_folder_without_a_search(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["search-report", str(tmp_path)])
    assert done.exit_code == 1
    assert "expected the output_dir of a hyperparameter search" in done.output


def test_the_last_search_and_the_last_row_of_a_trial_count(tmp_path: Path) -> None:
    log.begin(tmp_path, log.SearchLog("old", "optuna", ["minimize"], {}), 1)
    log.append(tmp_path, "old", log.TrialRow("0", "run-0", "complete", [0.1]))
    log.begin(tmp_path, log.SearchLog("new", "optuna", ["maximize"], {}), 2)
    log.append(tmp_path, "new", log.TrialRow("0", "run-0", "failed"))
    with open(tmp_path / log.FILE_NAME, "a") as file:
        file.write('{"of": "new", "tri')  # killed within a line
    log.append(tmp_path, "new", log.TrialRow("0", "run-0", "complete", [0.5]))
    log.append(tmp_path, "new", log.TrialRow("1", "run-1", "complete", [0.4]))
    found = log.read(tmp_path)
    assert found.study == "new"
    assert [row.values for row in found.rows.values()] == [[0.5], [0.4]]
    assert [row.trial for row in found.best()] == ["0"]
    assert all(
        json.loads(line)
        for line in (tmp_path / log.FILE_NAME).read_text().splitlines()
        if "tri\n" not in line and not line.endswith('"tri')
    )


def test_the_front_of_several_objectives() -> None:
    rows = {
        str(number): log.TrialRow(str(number), f"run-{number}", "complete", values)
        for number, values in enumerate([[1.0, 1.0], [2.0, 3.0], [2.0, 2.0], [1.0, 1.0]])
    }
    rows["4"] = log.TrialRow("4", "run-4", "pruned", [0.0, 9.0])
    found = log.SearchLog("study", "optuna", ["minimize", "maximize"], rows)
    assert [row.trial for row in found.best()] == ["0", "1", "3"]
