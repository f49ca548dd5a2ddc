"""`trainer_state.json` is shared with transformers: what one writes, the other reads."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import EarlyStoppingCallback as TheirEarlyStopping, TrainerState as TheirState
from transformers.trainer_callback import TrainerControl as TheirControl

from onward.callbacks import EarlyStoppingCallback
from onward.errors import BrokenCheckpoint
from onward.state import ExportableState, TrainerControl, TrainerState, exportable


def test_fields_and_defaults_are_those_of_transformers() -> None:
    assert dataclasses.asdict(TrainerState()) == dataclasses.asdict(TheirState())
    assert [f.name for f in dataclasses.fields(TrainerState)] == [f.name for f in dataclasses.fields(TheirState)]
    assert dataclasses.asdict(TrainerControl()) == dataclasses.asdict(TheirControl())


def filled(cls: type[Any], callbacks: list[Any]) -> Any:
    return cls(
        epoch=1.5,
        global_step=30,
        max_steps=60,
        train_batch_size=8,
        total_flos=1e18,
        log_history=[{"loss": 0.25, "epoch": 1.5, "step": 30}],
        best_metric=0.1,
        best_global_step=20,
        best_model_checkpoint="out/checkpoint-20",
        trial_params={"learning_rate": 1e-4, "optim": "sgd"},
        stateful_callbacks=callbacks,
    )


def test_the_file_is_the_one_that_transformers_writes(tmp_path: Path) -> None:
    filled(TrainerState, [EarlyStoppingCallback(3), TrainerControl(should_save=True)]).save_to_json(tmp_path / "ours")
    filled(TheirState, [TheirEarlyStopping(3), TheirControl(should_save=True)]).save_to_json(tmp_path / "theirs")
    assert (tmp_path / "ours").read_text() == (tmp_path / "theirs").read_text()


def test_each_reads_what_the_other_wrote(tmp_path: Path) -> None:
    ours, theirs = filled(TrainerState, [TrainerControl()]), filled(TheirState, [TheirControl()])
    ours.save_to_json(tmp_path / "ours")
    theirs.save_to_json(tmp_path / "theirs")
    assert dataclasses.asdict(TheirState.load_from_json(str(tmp_path / "ours"))) == dataclasses.asdict(ours)
    assert dataclasses.asdict(TrainerState.load_from_json(tmp_path / "theirs")) == dataclasses.asdict(theirs)


def test_values_that_metric_functions_return_are_written(tmp_path: Path) -> None:
    state = TrainerState(
        log_history=[{"f1": np.float32(0.5), "n": np.int64(3), "t": torch.tensor(2.0), "nan": math.nan}]
    )
    state.save_to_json(tmp_path / "state.json")
    (row,) = TrainerState.load_from_json(tmp_path / "state.json").log_history
    assert (row["f1"], row["n"], row["t"]) == (0.5, 3, 2.0)
    assert math.isnan(row["nan"])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    TrainerState(global_step=1).save_to_json(path)
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        TrainerState(log_history=[{"what": object()}]).save_to_json(path)
    assert TrainerState.load_from_json(path).global_step == 1


@pytest.mark.parametrize("content", ["", '{"epoch": 1.', "[1, 2]"])
def test_a_broken_file_is_said_to_be_broken(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(BrokenCheckpoint, match=r"state\.json"):
        TrainerState.load_from_json(tmp_path / "state.json")


def test_keys_of_a_newer_version_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"global_step": 7, "from_the_future": 1}))
    with caplog.at_level(logging.WARNING):
        assert TrainerState.load_from_json(tmp_path / "state.json").global_step == 7
    assert "from_the_future" in caplog.text


@pytest.mark.parametrize("interval", [0.001, 0.1, 0.25, 1 / 3, 0.999, 1, 3, 500, None])
@pytest.mark.parametrize("max_steps", [1, 7, 100, 1001])
def test_fractions_become_steps_as_in_transformers(interval: float | None, max_steps: int) -> None:
    args = SimpleNamespace(logging_steps=interval, eval_steps=interval, save_steps=interval)
    ours, theirs = TrainerState(), TheirState()
    ours.compute_steps(args, max_steps)
    theirs.compute_steps(args, max_steps)
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)


def test_several_callbacks_of_a_class_become_a_list_as_in_transformers() -> None:
    patience = (1, 2, 3)
    ours = TrainerState(stateful_callbacks=[EarlyStoppingCallback(p) for p in patience])
    theirs = TheirState(stateful_callbacks=[TheirEarlyStopping(p) for p in patience])
    assert ours.stateful_callbacks == theirs.stateful_callbacks
    assert len(ours.stateful_callbacks["EarlyStoppingCallback"]) == 3


def test_callbacks_of_transformers_can_be_saved_too() -> None:
    theirs = TheirEarlyStopping(4)
    assert exportable([object(), theirs, TrainerControl, TrainerControl()])[0] is theirs
    assert len(exportable([object(), theirs, TrainerControl()])) == 2
    assert TrainerState(stateful_callbacks=[theirs]).stateful_callbacks["EarlyStoppingCallback"] == theirs.state()


def test_what_cannot_be_saved_is_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        TrainerState(stateful_callbacks=[object()])
    with pytest.raises(NotImplementedError, match="Half"):
        type("Half", (ExportableState,), {})().state()


def test_a_state_makes_an_equal_object() -> None:
    callback = EarlyStoppingCallback(5, 0.5)
    callback.early_stopping_patience_counter = 2
    assert vars(EarlyStoppingCallback.from_state(callback.state())) == vars(callback)
    control = TrainerControl(should_training_stop=True, should_log=True)
    assert TrainerControl.from_state(control.state()) == control
