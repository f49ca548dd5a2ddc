"""The scripts of ``examples/`` and `onward demo` run, in a reduced form, and do what they say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from onward.cli import demo
from onward.cli.main import app
from onward.errors import UsageError
from tests.conftest import ROOT

COMMAND = [sys.executable, "-c", "from onward.cli.main import app; app()"]


def run_example(name: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *options], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def number_after(words: str, text: str) -> float:
    """The number behind `words` in the last line, which is the script's own."""
    found = re.search(rf"{words} ([\d.]+\d)", text.splitlines()[-1])
    assert found, text
    return float(found[1])


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_every_example_has_a_test(path: Path) -> None:
    if path.name == demo.SCRIPT:
        return  # the demo runs it
    tests = [file for file in (ROOT / "tests").rglob("test_*.py") if f'"{path.name}"' in file.read_text("utf-8")]
    assert tests, "run it in this file"


def test_plain_module(tmp_path: Path) -> None:
    printed = run_example("plain_module.py", "--epochs", "8", "--output-dir", str(tmp_path))
    assert number_after("eval loss", printed) < 0.09  # always answering the mean scores 0.12
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-256", "metrics.jsonl"}


def test_classify(tmp_path: Path) -> None:
    printed = run_example("classify.py", "--epochs", "2", "--output-dir", str(tmp_path))
    assert number_after("accuracy", printed) > 0.8
    assert number_after("of nines", printed) > 0.5  # the first of the two trainings had none


@pytest.mark.timeout(900)
def test_demo_is_killed_and_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "demo", "--steps", "24", "--device", "cpu", "--output-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=880,
        env={**os.environ, "COLUMNS": "120"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill -9 when step" in done.stdout
    assert "logged losses are equal to the bit" in done.stdout
    assert str(tmp_path / "run-1") in done.stdout

    rows = [json.loads(line) for line in (tmp_path / "run-1" / "killed" / "metrics.jsonl").read_text().splitlines()]
    events = [row["event"] for row in rows if "event" in row]
    assert events == ["train_begin", "train_begin", "train_end"], "it was not killed, or did not resume"
    resumed_at = [row["step"] for row in rows if row.get("event") == "train_begin"][1]
    assert 0 < resumed_at < 24


def test_demo_notices_a_curve_that_differs(tmp_path: Path) -> None:
    from rich.console import Console

    for name, loss in (("whole", 1.0), ("resumed", 1.0 + 2**-52)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(f'{{"step": 5, "loss": {loss!r}}}\n')
        (tmp_path / name / "model.safetensors").write_bytes(b"the same")
    with pytest.raises(demo.DemoFailed, match="steps \\[5\\]"):
        demo._compare(Console(quiet=True), tmp_path / "whole", tmp_path / "resumed")


def test_losses_are_read_as_the_run_ended(tmp_path: Path) -> None:
    assert demo.read_losses(tmp_path) == {}
    rows = ['{"step": 5, "loss": 3.0}', '{"step": 10, "loss": 9.0}', '{"step": 10, "loss": 2.0}', '{"step": 15, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows))
    assert demo.read_losses(tmp_path) == {5: 3.0, 10: 2.0}


def test_demo_refuses_an_unknown_device(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected auto, cpu or cuda"):
        demo.run(24, "gpu", tmp_path, crash=True)
    result = CliRunner().invoke(app, ["demo", "--device", "gpu", "--output-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_the_command_line_lists_its_commands() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "demo" in result.output
    assert "checkpoints" in result.output
