"""``metrics.jsonl``: every log line, strict JSON, nothing lost."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from onward.callbacks.metrics_file import MetricsFileCallback, to_line
from onward.state import TrainerControl, TrainerState


def strict(line: str) -> Any:
    """Parse as a reader does that knows no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refuse)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [strict(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def log(callback: MetricsFileCallback, folder: Path, step: int, **state: Any) -> None:
    args = SimpleNamespace(output_dir=str(folder))
    callback.on_log(args, TrainerState(global_step=step, **state), TrainerControl(), logs={"loss": 1.0 / step})


def test_a_row_per_log_line_with_step_and_time(tmp_path: Path) -> None:
    callback = MetricsFileCallback()
    args, state = SimpleNamespace(output_dir=str(tmp_path / "new" / "folder")), TrainerState(max_steps=9)
    callback.on_train_begin(args, state, TrainerControl())
    log(callback, tmp_path / "new" / "folder", 4)
    callback.on_train_error(args, state, TrainerControl(), error=ValueError("why"))
    begin, row, end = rows_of(tmp_path / "new" / "folder")
    assert (begin["event"], begin["step"], begin["max_steps"]) == ("train_begin", 0, 9)
    assert (row["step"], row["loss"]) == (4, 0.25)
    assert 1.6e9 < row["time"] < 1e10
    assert (end["event"], end["error"]) == ("train_error", "ValueError: why")
    assert "trial" not in row


def test_a_line_is_there_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    """A process that is killed right after a log line has it on file."""
    script = (
        "import os, signal\n"
        "from types import SimpleNamespace\n"
        "from onward.callbacks import MetricsFileCallback\n"
        "from onward.state import TrainerControl, TrainerState\n"
        f"args = SimpleNamespace(output_dir={str(tmp_path)!r})\n"
        "MetricsFileCallback().on_log(args, TrainerState(global_step=3), TrainerControl(), logs={'loss': 2.0})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == -9
    assert [row["loss"] for row in rows_of(tmp_path)] == [2.0]


def test_a_resumed_run_appends_behind_a_torn_line(tmp_path: Path) -> None:
    log(MetricsFileCallback(), tmp_path, 1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    callback = MetricsFileCallback()
    log(callback, tmp_path, 2)
    log(callback, tmp_path, 3)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[1] == '{"step": 2, "lo'
    assert [strict(line)["step"] for line in (lines[0], *lines[2:])] == [1, 2, 3]


def test_rates_of_the_interval_stand_beside_the_log(tmp_path: Path) -> None:
    args, rates = SimpleNamespace(output_dir=str(tmp_path)), {"tokens_per_second": 9.0, "loss": 0.0}
    MetricsFileCallback().on_log(args, TrainerState(), TrainerControl(), logs={"loss": 1.0}, rates=rates)
    (row,) = rows_of(tmp_path)
    assert (row["loss"], row["tokens_per_second"]) == (1.0, 9.0)


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    log(MetricsFileCallback(), tmp_path, 1, is_world_process_zero=False)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_rows_of_a_search_name_their_trial(tmp_path: Path) -> None:
    callback = MetricsFileCallback()
    log(callback, tmp_path, 1, is_hyper_param_search=True, trial_name="trial-7")
    log(callback, tmp_path, 2, is_hyper_param_search=True)
    assert [row["trial"] for row in rows_of(tmp_path)] == ["trial-7", None]


@pytest.mark.parametrize(
    ("value", "name"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity"), (np.float32("nan"), "NaN")]
)
def test_what_is_not_finite_is_null_and_named(value: Any, name: str) -> None:
    row = strict(to_line({"loss": value, "grad_norm": 1.5}))
    assert row == {"loss": None, "grad_norm": 1.5, "nonfinite": {"loss": name}}


def test_what_people_log_becomes_json() -> None:
    logged = {
        "numpy": np.float64(0.5),
        "tensor": torch.tensor(2),
        "array": np.array([1.0, math.nan]),
        "nested": {"a": (1, math.inf)},
        "flag": True,
        "text": "naïve\nline",
        "nothing": None,
        "object": Path("x"),
        3: "three",
    }
    line = to_line(logged)
    assert line.count("\n") == 1
    assert strict(line) == {
        "numpy": 0.5,
        "tensor": 2,
        "array": [1.0, None],
        "nested": {"a": [1, None]},
        "flag": True,
        "text": "naïve\nline",
        "nothing": None,
        "object": "x",
        "3": "three",
        "nonfinite": {"array.1": "NaN", "nested.a.1": "Infinity"},
    }


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device that is always full")
def test_a_full_disk_warns_once_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    callback = MetricsFileCallback()
    with caplog.at_level(logging.WARNING, "onward"):
        for step in (1, 2, 3):
            log(callback, tmp_path, step)
    assert caplog.text.count("training goes on") == 1
    assert "No space left" in caplog.text
    (tmp_path / "metrics.jsonl").unlink()  # there is room again
    log(callback, tmp_path, 4)
    assert [row["step"] for row in rows_of(tmp_path)] == [4]
