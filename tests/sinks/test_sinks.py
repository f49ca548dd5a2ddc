"""``report_to``: real TensorBoard, MLflow, trackio and W&B, each read back with its own tools, all offline."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.tiny import TinyRegression

from onward.arguments import TrainingArguments
from onward.callbacks import CallbackHandler, DefaultFlowCallback
from onward.errors import MissingDependency, UsageError
from onward.sinks import installed_reports, report_callbacks, resolve_reports
from onward.sinks.tensorboard import TensorBoardCallback, tag
from onward.state import TrainerControl, TrainerState

ARGUMENTS = pytest.mark.parametrize("arguments", [TrainingArguments, transformers.TrainingArguments])


def drive(callbacks: list[Any], args: Any, log_lines: list[dict[str, Any]], start: int = 0, **state: Any) -> None:
    """A run of one step per log line through a real handler."""
    handler = CallbackHandler([DefaultFlowCallback(), *callbacks], TinyRegression(), None, None, None)
    run = TrainerState(max_steps=start + len(log_lines), global_step=start, **state)
    control = handler.on_init_end(args, run, TrainerControl())
    control = handler.on_train_begin(args, run, control)
    for logs in log_lines:
        control = handler.on_step_begin(args, run, control)
        run.global_step += 1
        control = handler.on_step_end(args, run, control)
        control = handler.on_log(args, run, control, logs)
        control = handler.on_save(args, run, control)
    handler.on_train_end(args, run, control)


def events_of(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestTensorBoard:
    @ARGUMENTS
    def test_what_was_logged_is_read_back(
        self, arguments: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        args = arguments(output_dir=str(tmp_path), report_to="tensorboard")
        lines: list[dict[str, Any]] = [
            {"loss": 1.5, "eval_loss": np.float32(2.5), "test_f1": torch.tensor(0.5), "note": "words"},
            {"loss": math.nan, "bad": [1, 2]},
        ]
        with caplog.at_level(logging.WARNING, "onward"):
            drive(report_callbacks(args.report_to), args, lines)
        (folder,) = (tmp_path / "runs").iterdir()
        events = events_of(folder)
        assert {"train/loss", "eval/loss", "test/f1"} == set(events.Tags()["scalars"])
        loss = events.Scalars("train/loss")
        assert [event.step for event in loss] == [1, 2]
        assert loss[0].value == 1.5
        assert math.isnan(loss[1].value)
        assert events.Scalars("eval/loss")[0].value == 2.5
        assert set(events.Tags()["tensors"]) == {"train/note/text_summary", "args/text_summary"}
        assert "bad=[1, 2]" in caplog.text

    def test_a_trial_has_a_folder_of_its_own(self, tmp_path: Path) -> None:
        args = TrainingArguments(output_dir=str(tmp_path), report_to="tensorboard")
        callback = TensorBoardCallback()
        for trial in ("trial-0", "trial-1"):
            drive([callback], args, [{"loss": 1.0}], is_hyper_param_search=True, trial_name=trial)
        assert {path.name for path in (tmp_path / "runs").glob("*/*") if path.is_dir()} == {"trial-0", "trial-1"}

    def test_a_resume_into_the_same_folder_replaces_what_was_lost(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first process logged steps 1 to 4, but its last checkpoint was that of step 2."""
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
        args = TrainingArguments(output_dir=str(tmp_path), report_to="tensorboard")
        drive([TensorBoardCallback()], args, [{"loss": step} for step in (1.0, 2.0, 3.0, 4.0)])
        drive([TensorBoardCallback()], args, [{"loss": step} for step in (3.5, 4.5)], start=2)
        loss = events_of(tmp_path / "tb").Scalars("train/loss")
        assert [(event.step, event.value) for event in loss] == [(1, 1.0), (2, 2.0), (3, 3.5), (4, 4.5)]

    def test_only_the_first_process_writes(self, tmp_path: Path) -> None:
        args = TrainingArguments(output_dir=str(tmp_path), report_to="tensorboard")
        drive([TensorBoardCallback()], args, [{"loss": 1.0}], is_world_process_zero=False)
        assert not (tmp_path / "runs").exists()

    def test_a_writer_of_the_user_is_used(self, tmp_path: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        args = TrainingArguments(output_dir=str(tmp_path), report_to=[])
        drive([TensorBoardCallback(SummaryWriter(str(tmp_path / "mine")))], args, [{"loss": 1.0}])
        assert events_of(tmp_path / "mine").Scalars("train/loss")[0].value == 1.0

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("loss", "train/loss"), ("eval_a_b", "eval/a_b"), ("test_x", "test/x"), ("evaluated", "train/evaluated"),
         ("eval_", "train/eval_"), ("train_runtime", "train/train_runtime")],
    )  # fmt: skip
    def test_names_are_those_of_transformers(self, name: str, expected: str) -> None:
        assert tag(name) == expected


def test_tensorboard_needs_neither_transformers_nor_its_import(tmp_path: Path) -> None:
    """A blocked import is as good as an absent package."""
    script = (
        "import sys\n"
        "sys.modules['transformers'] = None\n"
        "from onward.arguments import TrainingArguments\n"
        "from onward.callbacks import CallbackHandler, DefaultFlowCallback\n"
        "from onward.sinks import installed_reports, report_callbacks\n"
        "from onward.state import TrainerControl, TrainerState\n"
        f"args = TrainingArguments(output_dir={str(tmp_path)!r}, report_to='all')\n"
        "assert installed_reports() == ['tensorboard'], installed_reports()\n"
        "callbacks = [DefaultFlowCallback(), *report_callbacks(args.report_to)]\n"
        "handler = CallbackHandler(callbacks, None, None, None, None)\n"
        "state, control = TrainerState(max_steps=1), TrainerControl()\n"
        "handler.on_train_begin(args, state, control)\n"
        "handler.on_log(args, state, control, {'loss': 1.0})\n"
        "handler.on_train_end(args, state, control)\n"
        "try: report_callbacks('wandb')\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "onward[hf]" in done.stdout
    assert list((tmp_path / "runs").glob("*/events*"))


@ARGUMENTS
@pytest.mark.filterwarnings("ignore")
def test_mlflow(arguments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own callback, into a store of files."""
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    args = arguments(output_dir=str(tmp_path), report_to="mlflow", run_name="a run", learning_rate=0.125)
    drive(report_callbacks(args.report_to), args, [{"loss": 1.5, "epoch": 0.5}, {"loss": 1.25, "epoch": 1.0}])
    client = mlflow.MlflowClient(f"file://{tmp_path}/mlruns")
    (run,) = client.search_runs(["0"])
    assert run.info.run_name == "a run"
    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "0.125"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((entry.step, entry.value) for entry in history) == [(1, 1.5), (2, 1.25)]


def in_process(tool: str, folder: Path, **environment: str) -> str:
    """Log two lines with our arguments and two with transformers' to `tool`; return what the process printed.

    A process of its own, because the tools read where to write when they are imported, and leave threads behind.
    """
    script = (
        "import onward, transformers\n"
        "from tests.sinks.test_sinks import drive\n"
        "from onward.sinks import report_callbacks\n"
        "for name, room in (('ours', onward), ('theirs', transformers)):\n"
        f"    args = room.TrainingArguments(output_dir={str(folder)!r}, report_to={tool!r}, run_name=name)\n"
        "    args.project = 'p'\n"
        "    drive(report_callbacks(args.report_to), args, [{'loss': 1.5}, {'loss': 1.25}])\n"
        "    if args.report_to == ['wandb']:\n"
        "        import wandb\n"
        "        print(name, wandb.run.summary['train/loss'])\n"
        "        wandb.finish()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_trackio(tmp_path: Path) -> None:
    in_process("trackio", tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    (stored,) = (tmp_path / "trackio").glob("p*.db")
    with contextlib.closing(sqlite3.connect(stored)) as base:
        rows = base.execute("select run_name, metrics from metrics order by run_name, step").fetchall()
    losses = [(name, json.loads(values).get("train/loss")) for name, values in rows]
    assert losses == [("ours", 1.5), ("ours", 1.25), ("theirs", 1.5), ("theirs", 1.25)]


@pytest.mark.slow
def test_wandb(tmp_path: Path) -> None:
    printed = in_process("wandb", tmp_path, WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    assert "ours 1.25" in printed
    assert "theirs 1.25" in printed
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 2


@pytest.mark.parametrize(
    ("report_to", "names"),
    [
        (None, []),
        ("none", []),
        (["none"], []),
        ([], []),
        ("wandb", ["wandb"]),
        (["mlflow", "tensorboard", "mlflow"], ["mlflow", "tensorboard"]),
        (("trackio",), ["trackio"]),
    ],
)
def test_names_are_resolved(report_to: Any, names: list[str]) -> None:
    assert resolve_reports(report_to) == names


def test_all_is_what_is_installed() -> None:
    assert resolve_reports("all") == resolve_reports(["all"]) == installed_reports()
    assert {"tensorboard", "mlflow", "trackio", "wandb"} <= set(installed_reports())


def test_an_unknown_name_is_corrected() -> None:
    with pytest.raises(UsageError, match="Did you mean 'tensorboard'"):
        report_callbacks("tensorbord")
    with pytest.raises(UsageError, match="expected 'all', 'none'"):
        report_callbacks(["wandb", "nowhere"])


def test_what_is_not_installed_is_named_with_its_remedy() -> None:
    with pytest.raises(MissingDependency, match="pip install 'comet-ml'"):
        report_callbacks("comet_ml")


def test_a_forbidden_integration_is_said_to_be_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISABLE_MLFLOW_INTEGRATION", "true")
    with pytest.raises(UsageError, match="DISABLE_MLFLOW_INTEGRATION"):
        report_callbacks("mlflow")


def test_every_integration_of_transformers_has_a_name_here() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in INTEGRATION_TO_CALLBACK:
        assert resolve_reports(name) == [name]
