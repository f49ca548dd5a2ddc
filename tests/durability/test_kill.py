"""`kill -9` at random moments of a run that saves at every step: a resume never fails and ends with equal weights."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from tests.durability.conftest import Victims, assert_equal, assert_whole, weights_beside

from onward.checkpoint import list_checkpoints


@pytest.mark.parametrize("through_hooks", [False, True])
@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_kill_at_random_moments(
    kills: int, through_hooks: bool, victims: Victims, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    moments = random.Random(kills)
    killed = 0
    for round_ in range(kills):
        folder = tmp_path / f"round-{round_ // 5}" / "run"  # five kills to a run: some die before they saved anything
        pid = victims.start("train", folder, through_hooks=through_hooks)
        time.sleep(moments.uniform(0.0, 0.8))
        os.kill(pid, signal.SIGKILL)
        killed += victims.wait() == -signal.SIGKILL
        assert_whole(folder)
        if round_ % 5 == 4 or round_ == kills - 1:
            victims.start("train", folder, through_hooks=through_hooks)
            assert victims.wait() == 0, victims.errors.read_text()
            assert_whole(folder)
            assert_equal(weights_beside(folder), undisturbed)
            assert len(list_checkpoints(folder)) <= 3
            assert not list(folder.glob(".*"))
    assert killed > kills // 2, "the kills came too late to mean anything"
