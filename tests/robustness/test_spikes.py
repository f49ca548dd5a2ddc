"""A loss that jumps: left out, or gone back from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from onward.callbacks.spikes import LossSpikeCallback
from onward.errors import NonFinite
from tests.robustness.test_nonfinite import Chosen, Watcher, same, trainer, weights
from tests.tiny import RegressionData


class Jumping(RegressionData):
    """Steps of four samples, which are the same in each; those of some steps have labels far off."""

    def __init__(self, *steps: int, total: int = 10) -> None:
        super().__init__(4)
        self.x = self.x.repeat(total, 1)
        self.labels = self.labels.repeat(total)
        for step in steps:
            self.labels[4 * (step - 1) : 4 * step] = 1000.0


def test_skip_leaves_the_step_out(tmp_path: Path) -> None:
    watcher = Watcher()
    it = trainer(tmp_path, Jumping(8), callbacks=[LossSpikeCallback(action="skip"), watcher], logging_steps=1)
    it.train()
    assert same(watcher.weights[7], watcher.weights[6])
    assert not same(watcher.weights[8], watcher.weights[7])
    assert it.meters.nonfinite_steps == 0
    assert it.meters.left_out_steps == 1
    assert it.state.global_step == 10


def test_a_jump_that_stays_ends_the_run(tmp_path: Path) -> None:
    it = trainer(
        tmp_path, Jumping(7, 8, 9), callbacks=[LossSpikeCallback(action="skip")], logging_steps=1, max_nonfinite_steps=3
    )
    with pytest.raises(NonFinite, match="loss above the limit"):
        it.train()


def test_rollback_goes_on_behind_it(tmp_path: Path) -> None:
    data = Jumping(8)
    it = trainer(
        tmp_path / "a", data, callbacks=[LossSpikeCallback(action="rollback")], logging_steps=1,
        save_strategy="steps", save_steps=2, max_steps=8, num_train_epochs=3,
    )  # fmt: skip
    it.train()
    assert it.meters.rollbacks == 1
    assert it.state.global_step == 8
    by_hand = trainer(tmp_path / "b", Chosen(data, [1, 2, 3, 4, 5, 6, 9, 10]), max_steps=8)
    by_hand.train()
    assert same(weights(it), weights(by_hand))
    assert all(torch.isfinite(weight).all() for weight in weights(it))
