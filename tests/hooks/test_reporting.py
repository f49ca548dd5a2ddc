"""The reporting verbs, beside transformers' trainer where it has the same."""

from __future__ import annotations

import gc
import json
import math
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from tests.tiny import RegressionData, TinyRegression, tiny_llama

import onward
from onward import Trainer, TrainingArguments
from onward.callbacks import (
    DefaultFlowCallback,
    MetricsFileCallback,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
)
from onward.errors import MissingDependency
from onward.sinks.tensorboard import TensorBoardCallback


def trainer_of(folder: Path, room: Any = onward, model: Any = None, callbacks: Any = None, **options: Any) -> Any:
    args = room.TrainingArguments(output_dir=str(folder), report_to=options.pop("report_to", []), **options)
    return room.Trainer(model or TinyRegression(), args, train_dataset=RegressionData(8), callbacks=callbacks)


class LogKeeper(TrainerCallback):
    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, Any], Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, rates: Any = None, **kwargs: Any) -> None:
        self.calls.append((dict(logs), rates))


def test_log_adds_the_epoch_and_keeps_the_step(tmp_path: Path) -> None:
    keeper = LogKeeper()
    trainer = trainer_of(tmp_path, callbacks=[keeper])
    trainer.state.epoch, trainer.state.global_step = 0.5, 7
    trainer.control.should_log = True
    logs = {"loss": 1.0}
    trainer.log(logs)
    assert logs == {"loss": 1.0, "epoch": 0.5}
    assert trainer.state.log_history == [{"loss": 1.0, "epoch": 0.5, "step": 7}]
    assert keeper.calls == [({"loss": 1.0, "epoch": 0.5}, None)]
    assert trainer.control.should_log is False


def test_token_counts_are_logged_as_in_transformers(tmp_path: Path) -> None:
    kept = []
    for room in (onward, transformers):
        trainer = trainer_of(tmp_path, room, include_num_input_tokens_seen="all")
        trainer._initial_num_input_tokens_seen = 100
        trainer.state.num_input_tokens_seen = 1100
        trainer.log({"loss": 1.0}, start_time=time.time() - 10)
        (entry,) = trainer.state.log_history
        assert 90 < entry.pop("train_tokens_per_second") < 101
        assert 10 <= entry.pop("train_runtime") < 11
        kept.append(entry)
    assert kept[0] == kept[1]
    assert kept[0]["num_input_tokens_seen"] == 1100


def test_rates_reach_callbacks_once_and_never_the_history(tmp_path: Path) -> None:
    keeper = LogKeeper()
    trainer = trainer_of(tmp_path, callbacks=[keeper])
    trainer._interval_rates = {"samples_per_second": 3.0}
    trainer.log({"loss": 1.0})
    trainer.log({"loss": 2.0})
    assert [rates for _, rates in keeper.calls] == [{"samples_per_second": 3.0}, None]
    assert all("samples_per_second" not in entry for entry in trainer.state.log_history)


METRICS = {
    "train_runtime": 93784.256,
    "eval_runtime": 1.5,
    "total_flos": 7 * 2**31,
    "init_mem_cpu_alloc_delta": 1301 << 20,
    "train_loss": 0.123456789,
    "epoch": 3.0,
    "n": 12,
    "name": "x",
}


def test_metrics_are_formatted_as_in_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers.trainer_pt_utils import metrics_format

    assert Trainer.metrics_format(METRICS) == metrics_format(METRICS)
    own = {"eval_memory_f1": 0.123456789}  # a user's, which counts no bytes
    assert Trainer.metrics_format(own) == metrics_format(own) == {"eval_memory_f1": 0.1235}
    assert Trainer.metrics_format({"train_peak_memory_rss": 5 << 20}) == {"train_peak_memory_rss": "5MB"}
    printed = []
    for room in (onward, transformers):
        trainer = trainer_of(tmp_path, room)
        capsys.readouterr()
        trainer.log_metrics("train", METRICS)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_metrics_files_are_those_of_transformers(tmp_path: Path) -> None:
    for folder, room in (("ours", onward), ("theirs", transformers)):
        trainer = trainer_of(tmp_path / folder, room)
        trainer.save_metrics("train", {"a": 1.5, "epoch": 1.0})
        trainer.save_metrics("eval", {"b": math.nan, "epoch": 2.0})
        trainer.save_metrics("test", {"c": 0.0}, combined=False)
    for name in ("train_results.json", "eval_results.json", "test_results.json", "all_results.json"):
        ours, theirs = ((tmp_path / folder / name).read_text() for folder in ("ours", "theirs"))
        assert ours.strip() == theirs.strip()


def test_metrics_that_transformers_cannot_write_are_written(tmp_path: Path) -> None:
    trainer_of(tmp_path).save_metrics("eval", {"f1": np.float32(0.5)})
    assert json.loads((tmp_path / "eval_results.json").read_text()) == {"f1": 0.5}


def test_the_state_is_saved(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "new")
    trainer.state.global_step = 5
    trainer.save_state()
    saved = transformers.TrainerState.load_from_json(str(tmp_path / "new" / "trainer_state.json"))
    assert saved.global_step == 5


def test_only_the_first_process_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tmp_path)
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    trainer.log_metrics("train", METRICS)
    trainer.save_metrics("train", METRICS)
    trainer.save_state()
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.glob("*.json"))


def test_the_callbacks_come_in_transformers_order(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, callbacks=[LogKeeper()], report_to="tensorboard", disable_tqdm=False)
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert kinds == [DefaultFlowCallback, TensorBoardCallback, LogKeeper, ProgressCallback]
    assert [type(watcher) for watcher in trainer.callback_handler.watchers] == [MetricsFileCallback]
    trainer = trainer_of(tmp_path, disable_tqdm=True, metrics_file=False)
    assert [type(callback) for callback in trainer.callback_handler.callbacks] == [DefaultFlowCallback, PrinterCallback]
    assert trainer.callback_handler.watchers == []


def test_an_absent_tool_is_named_before_training(tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match="comet"):
        trainer_of(tmp_path, report_to="comet_ml")


def test_callbacks_are_added_popped_and_removed(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    keeper = LogKeeper()
    trainer.add_callback(keeper)
    trainer.add_callback(MetricsFileCallback)
    assert trainer.pop_callback(LogKeeper) is keeper
    assert trainer.pop_callback(keeper) is None
    trainer.remove_callback(transformers.ProgressCallback)
    assert not any(isinstance(callback, ProgressCallback) for callback in trainer.callback_handler.callbacks)


class TestFloatingPointOperations:
    def test_they_are_counted_as_in_transformers(self, tmp_path: Path) -> None:
        model = tiny_llama()
        inputs = {"input_ids": model.dummy_inputs["input_ids"]}
        ours, theirs = (trainer_of(tmp_path, room, model=model) for room in (onward, transformers))
        assert ours.floating_point_ops(inputs) == theirs.floating_point_ops(inputs) > 0
        assert ours.floating_point_ops({"x": 1}) == 0
        assert trainer_of(tmp_path).floating_point_ops(inputs) == 0

    def test_parameters_are_counted_once_for_a_model(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model, other = tiny_llama(), tiny_llama()
        inputs = model.dummy_inputs
        trainer = trainer_of(tmp_path, model=model)
        counted = []
        count = type(model).num_parameters
        monkeypatch.setattr(
            type(model), "num_parameters", lambda self, **options: counted.append(self) or count(self, **options)
        )
        first = [trainer.floating_point_ops(inputs) for _ in range(3)]
        assert counted == [model]
        trainer.model = other
        assert trainer.floating_point_ops(inputs) == first[0]
        assert counted == [model, other]

    def test_the_count_keeps_no_model_alive(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path, model=tiny_llama())
        trainer.floating_point_ops(trainer.model.dummy_inputs)
        gone = weakref.ref(trainer.model)
        trainer.model = trainer.model_wrapped = trainer.callback_handler.model = tiny_llama()
        gc.collect()
        assert gone() is None

    def test_they_are_stored_and_counted_anew(self, tmp_path: Path) -> None:
        trainer = trainer_of(tmp_path)
        trainer.current_flos = 12
        trainer.store_flos()
        trainer.store_flos()
        assert (trainer.state.total_flos, trainer.current_flos) == (12, 0)


def test_a_run_writes_its_lines_and_tells_callbacks_of_its_end(tmp_path: Path) -> None:
    """Through the real loop: an error in it reaches `on_train_error` and the file."""

    class Bomb(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise ZeroDivisionError("boom")

    trainer = trainer_of(tmp_path, callbacks=[Bomb()], logging_steps=1, max_steps=5, save_strategy="no")
    with pytest.raises(ZeroDivisionError, match="boom"):
        trainer.train()
    rows = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("event", "log") for row in rows] == ["train_begin", "log", "log", "train_error"]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[1]["loss"] == trainer.state.log_history[0]["loss"]
    assert rows[1]["samples_per_second"] > 0
    assert isinstance(trainer.args, TrainingArguments)


def test_a_handler_of_transformers_may_stand_in_for_ours(tmp_path: Path) -> None:
    """TRL puts one there after the trainer is built; our callbacks still hear of everything."""
    from transformers.trainer_callback import CallbackHandler as TheirHandler

    class Bomb(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                raise ZeroDivisionError("boom")

    trainer = trainer_of(tmp_path, callbacks=[Bomb()], logging_steps=1, max_steps=5, save_strategy="no")
    handler = trainer.callback_handler
    trainer.callback_handler = TheirHandler(handler.callbacks, trainer.model, None, None, None)
    with pytest.raises(ZeroDivisionError, match="boom"):
        trainer.train()
    rows = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("event", "log") for row in rows] == ["train_begin", "log", "train_error"]


def test_an_error_in_a_callback_does_not_hide_the_one_that_ended_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Clumsy(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError("first")

        def on_train_error(self, *args: Any, **kwargs: Any) -> None:
            raise KeyError("second")

    with pytest.raises(ZeroDivisionError, match="first"):
        trainer_of(tmp_path, callbacks=[Clumsy()], max_steps=2, save_strategy="no").train()
    assert "second" in caplog.text
