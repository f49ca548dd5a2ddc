"""`onward checkpoints`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tests.checkpoint.conftest import write_checkpoint
from typer.testing import CliRunner

from onward.checkpoint import layout, pin
from onward.checkpoint.owner import current
from onward.checkpoint.staging import Staging
from onward.cli.checkpoints import app
from onward.state import TrainerState

run = CliRunner().invoke


def test_ls_of_a_healthy_run(run_dir: Path) -> None:
    for step in (8, 10):
        path = write_checkpoint(run_dir, step)
    with pin(run_dir / "checkpoint-8"):
        result = run(app, ["ls", str(run_dir)])
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if "checkpoint-" in line]
    assert ["pinned" in row for row in rows] == [True, False]
    assert all("yes" in row for row in rows)
    assert path.name in rows[1]


def test_ls_names_the_best(run_dir: Path) -> None:
    best, last = write_checkpoint(run_dir, 1, commit=False), write_checkpoint(run_dir, 2, commit=False)
    TrainerState(global_step=2, best_model_checkpoint=str(best)).save_to_json(last / layout.TRAINER_STATE)
    rows = [line for line in run(app, ["ls", str(run_dir)]).output.splitlines() if "checkpoint-" in line]
    assert ["best" in row for row in rows] == [True, False]


@pytest.mark.parametrize("command", ["ls", "verify"])
def test_a_broken_one_is_named_and_the_exit_code_says_so(run_dir: Path, command: str) -> None:
    (write_checkpoint(run_dir, 1) / layout.OPTIMIZER).unlink()
    write_checkpoint(run_dir, 2)
    result = run(app, [command, str(run_dir)])
    assert result.exit_code == 1
    assert "optimizer.pt is missing" in result.output


def test_verify_of_a_single_checkpoint(run_dir: Path) -> None:
    path = write_checkpoint(run_dir, 1)
    result = run(app, ["verify", str(path)])
    assert result.exit_code == 0
    assert f"{path}: whole" in result.output


def test_rm_stale_deletes_what_the_dead_left_and_keeps_what_the_living_write(run_dir: Path) -> None:
    path = write_checkpoint(run_dir, 1)
    for owner in (dataclasses.replace(current(), started="1"), dataclasses.replace(current(), host="other")):
        (run_dir / f"{layout.STAGING_PREFIX}{owner.token()}-0").mkdir()
    Staging.create(run_dir / "checkpoint-2")
    result = run(app, ["rm-stale", str(run_dir)])
    assert result.exit_code == 0
    assert result.output.count("deleted") == 1
    assert result.output.count("kept") == 1
    assert len(list(run_dir.glob(".onward-*"))) == 2
    run(app, ["rm-stale", "--others", str(run_dir)])
    assert len(list(run_dir.glob(".onward-*"))) == 1
    assert path.exists()


def test_a_folder_that_is_not_there(run_dir: Path) -> None:
    assert run(app, ["ls", str(run_dir / "nowhere")]).exit_code == 2
