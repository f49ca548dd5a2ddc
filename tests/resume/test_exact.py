"""A run resumed from any of its checkpoints ends as if it had never stopped: weights, losses and all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from onward import Trainer
from tests.resume.scenarios import SCENARIOS, Scenario, checkpoints, disturb, tensors_of

_CLOCK = ("runtime", "per_second", "mem_", "memory")


def what_happened(trainer: Trainer, loss: float) -> dict[str, Any]:
    """Everything that two equal runs have in common."""
    history = [
        {k: v for k, v in line.items() if not any(word in k for word in _CLOCK)} for line in trainer.state.log_history
    ]
    return {"weights": tensors_of(trainer), "history": history, "loss": loss, "step": trainer.state.global_step}


def assert_equal(got: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    """Compare to the bit."""
    assert got["step"] == wanted["step"], where
    assert got["history"] == wanted["history"], where
    assert got["loss"] == wanted["loss"], where
    for name, value in wanted["weights"].items():
        assert torch.equal(got["weights"][name], value), f"{where}: {name}"


def assert_resumes(scenario: Scenario, found: list[Path], checkpoint: Path, wanted: dict[str, Any]) -> None:
    """From one of the checkpoints `found` of the whole run."""
    disturb()
    # A copy, because a resumed run writes its later checkpoints beside the one it came from.
    copy = checkpoint.parent.with_name("resumed") / checkpoint.name
    for earlier in found[: found.index(checkpoint) + 1] if "best" in "".join(scenario.arguments) else [checkpoint]:
        shutil.copytree(earlier, copy.parent / earlier.name)
    again = scenario.make(copy.parent, resumed=True)
    loss = again.train(resume_from_checkpoint=str(copy)).training_loss
    assert_equal(what_happened(again, loss), wanted, f"{scenario.arguments}, from {checkpoint.name}")
    shutil.rmtree(copy.parent)


@pytest.mark.parametrize("name", SCENARIOS)
def test_resuming_from_every_checkpoint(name: str, tmp_path: Path) -> None:
    scenario: Scenario = SCENARIOS[name]
    trainer = scenario.make(tmp_path / "whole")
    wanted = what_happened(trainer, trainer.train().training_loss)
    found = checkpoints(tmp_path / "whole")
    assert len(found) >= 2
    workers = scenario.arguments.get("dataloader_num_workers", 0)
    for checkpoint in found[:: 3 if workers else 1]:  # starting workers takes a while
        assert_resumes(scenario, found, checkpoint, wanted)


def test_resuming_a_resumed_run(tmp_path: Path) -> None:
    scenario = SCENARIOS["draws from torch"]
    trainer = scenario.make(tmp_path / "whole")
    wanted = what_happened(trainer, trainer.train().training_loss)
    folder = tmp_path / "pieces"
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", folder / "checkpoint-2")
    for last in (5, 9):
        piece = scenario.make(folder, resumed=True)
        piece.train(resume_from_checkpoint=True)
        for checkpoint in checkpoints(folder):
            if int(checkpoint.name.split("-")[1]) > last:
                shutil.rmtree(checkpoint)
    final = scenario.make(folder, resumed=True)
    loss = final.train(resume_from_checkpoint=True).training_loss
    assert_equal(what_happened(final, loss), wanted, "in three pieces")
