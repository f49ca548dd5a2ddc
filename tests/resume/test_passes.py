"""Streams that train for many passes: a resume at the end of one, and behind the last."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from onward import TrainerCallback
from tests.parity.record import recorder
from tests.resume.data import RewindingStream, Stream
from tests.resume.scenarios import Scenario, checkpoints, disturb, with_evaluation
from tests.resume.test_exact import assert_equal, assert_resumes, what_happened

SHORT_STEPS = {"max_steps": 7, "gradient_accumulation_steps": 4}  # of 4 and of 2 micro-batches
SCENARIOS = {
    "steps that are short of batches": Scenario(SHORT_STEPS, data=RewindingStream, dropout=0.2),
    "the same with workers": Scenario(SHORT_STEPS | {"dataloader_num_workers": 2}, data=RewindingStream),
    "the same without a state": Scenario(SHORT_STEPS | {"dataloader_num_workers": 2}, data=Stream),
    "batches that are not full": Scenario({"max_steps": 9}, data=lambda: RewindingStream(10), dropout=0.2),
    "batches that are dropped": Scenario(
        {"max_steps": 9, "dataloader_drop_last": True}, data=lambda: RewindingStream(10), dropout=0.2
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_resume_at_the_end_of_a_pass(name: str, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]
    trainer = scenario.make(tmp_path / "whole")
    wanted = what_happened(trainer, trainer.train().training_loss)
    found = checkpoints(tmp_path / "whole")
    for checkpoint in found:
        assert_resumes(scenario, found, checkpoint, wanted)


def test_a_finished_run_evaluates_and_saves_no_more(tmp_path: Path) -> None:
    by_epoch = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    scenario = Scenario({"max_steps": 5} | by_epoch, data=Stream, extra=with_evaluation)
    trainer = scenario.make(tmp_path)
    wanted = what_happened(trainer, trainer.train().training_loss)
    drawn = torch.rand(3)
    disturb()
    again, events = scenario.make(tmp_path, resumed=True), recorder(TrainerCallback)
    again.add_callback(events)
    loss = again.train(resume_from_checkpoint=True).training_loss
    assert_equal(what_happened(again, loss), wanted, "behind the end")
    assert torch.equal(torch.rand(3), drawn)
    assert [event["event"] for event in events.trace] == ["on_train_begin", "on_log", "on_train_end"]
