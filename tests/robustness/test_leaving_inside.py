"""A signal in the middle of an accumulated step: the step is taken back, and the run goes on exactly."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from onward import Trainer, TrainerCallback, TrainingArguments
from onward.errors import Preempted
from tests.resume.data import Augmented
from tests.tiny import RegressionStream, TinyRegression


class Signalled(TrainerCallback):
    """Sends this process a signal behind the second micro-batch of a step, and counts micro-batches."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.inside, self.batches = at, 0, 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.rand(1)
        self.inside = 0

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.inside += 1
        self.batches += 1
        if state.global_step == self.at and self.inside == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def trainer(folder: Path, data: Any, callback: Signalled, **options: Any) -> Trainer:
    args = TrainingArguments(
        output_dir=str(folder), num_train_epochs=2, per_device_train_batch_size=2, gradient_accumulation_steps=4,
        learning_rate=1e-2, logging_steps=3, save_strategy="no", report_to="none", disable_tqdm=True,
        include_num_input_tokens_seen="no", **options,
    )  # fmt: skip
    return Trainer(TinyRegression(dropout=0.3), args, train_dataset=data, callbacks=[callback])


def ends_alike(one: Trainer, other: Trainer) -> None:
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    lines = [[line["loss"] for line in it.state.log_history if "loss" in line] for it in (one, other)]
    assert lines[0] == lines[1]
    assert one.state.total_flos == other.state.total_flos


@pytest.mark.parametrize("at", [0, 2, 5])  # the first step of all, one within an epoch, the first one of the second
@pytest.mark.parametrize("finds", [False, True])
def test_it_goes_on_exactly(at: int, finds: bool, tmp_path: Path) -> None:
    options = {"auto_find_batch_size": finds}
    whole = trainer(tmp_path / "whole", Augmented("torch", 40), Signalled(), **options)
    whole.train()
    callback = Signalled(at)
    left = trainer(tmp_path / "left", Augmented("torch", 40), callback, **options)
    with pytest.raises(Preempted):
        left.train()
    assert left.state.global_step == at
    assert callback.batches == 3 * at + 2
    again = trainer(tmp_path / "left", Augmented("torch", 40), Signalled(), **options)
    again.train(resume_from_checkpoint=True)
    ends_alike(again, whole)


class Normalised(TinyRegression):
    """Keeps running statistics, which every forward moves."""

    def __init__(self) -> None:
        super().__init__(dropout=0.3)
        self.norm = torch.nn.BatchNorm1d(8)  # type: ignore[assignment]


def test_running_statistics_are_taken_back_too(tmp_path: Path) -> None:
    def made(name: str, at: int = -1) -> Trainer:
        it = trainer(tmp_path / name, Augmented("torch", 40), Signalled(at))
        return Trainer(Normalised(), it.args, train_dataset=it.train_dataset, callbacks=it.callback_handler.callbacks)

    whole = made("whole")
    whole.train()
    with pytest.raises(Preempted):
        made("left", at=3).train()
    again = made("left")
    again.train(resume_from_checkpoint=True)
    ends_alike(again, whole)
    for a, b in zip(again.model.buffers(), whole.model.buffers(), strict=True):
        assert torch.equal(a, b)


def test_a_stream_finishes_the_step(tmp_path: Path) -> None:
    left = trainer(tmp_path, RegressionStream(80), Signalled(2), max_steps=6)
    with pytest.raises(Preempted):
        left.train()
    assert left.state.global_step == 3
    whole = trainer(tmp_path / "whole", RegressionStream(80), Signalled(), max_steps=6)
    whole.train()
    again = trainer(tmp_path, RegressionStream(80), Signalled(), max_steps=6)
    again.train(resume_from_checkpoint=True)
    ends_alike(again, whole)
