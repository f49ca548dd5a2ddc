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
@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_kill_at_random_moments(
    kills: int, through_hooks: bool, victims: Victims, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    moments = random.Random(kills)
    window = seconds_of_a_run(victims, tmp_path / "timed" / "run", through_hooks)
    killed = kills_of_this_run = runs = 0
    while killed < kills:
        folder = tmp_path / f"run-{runs}" / "run"
        pid = victims.start("train", folder, through_hooks=through_hooks)
        time.sleep(moments.uniform(0.0, window))
        os.kill(pid, signal.SIGKILL)
        hit = victims.wait() == -signal.SIGKILL
        assert_whole(folder)
        # However fast or loaded this machine is: a kill that came too late does not count, and the next comes earlier.
        window *= 1.1 if hit else 0.7
        killed += hit
        kills_of_this_run += hit
        if not hit or kills_of_this_run == 5 or killed == kills:
            victims.start("train", folder, through_hooks=through_hooks)
            assert victims.wait() == 0, victims.errors.read_text()
            assert_whole(folder)
            assert_equal(weights_beside(folder), undisturbed)
            assert len(list_checkpoints(folder)) <= 3
            assert not list(folder.glob(".*"))
            runs, kills_of_this_run = runs + 1, 0


def seconds_of_a_run(victims: Victims, folder: Path, through_hooks: bool) -> float:
    """How long a run takes here when nobody kills it."""
    began = time.monotonic()
    victims.start("train", folder, through_hooks=through_hooks)
    assert victims.wait() == 0, victims.errors.read_text()
    return time.monotonic() - began
