"""Going back to a checkpoint and on behind the bad data: where the data is a stream, where an epoch ends, and again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset

from onward import Trainer, TrainerCallback
from onward.callbacks import LossSpikeCallback
from tests.robustness.test_nonfinite import Broken, Chosen, losses, same, trainer, weights
from tests.robustness.test_spikes import Jumping
from tests.tiny import RegressionData


class Batches(RegressionData):
    """These batches, one after the other."""

    def __init__(self, batches: list[dict[str, torch.Tensor]]) -> None:
        self.x = torch.cat([batch["x"] for batch in batches])
        self.labels = torch.cat([batch["labels"] for batch in batches])


class BrokenStream(IterableDataset[Any]):
    def __init__(self, bad: dict[int, float], n: int) -> None:
        self.data = Broken(bad, n)

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self.data)):
            yield self.data[index]


class BrokenStatefulStream(BrokenStream):
    """It goes on where `load_state_dict` says, and begins anew behind its end."""

    place = 0

    def __iter__(self) -> Iterator[Any]:
        while self.place < len(self.data):
            self.place += 1
            yield self.data[self.place - 1]
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


class Seen(TrainerCallback):
    """What each step trained on, by wrapping `training_step`."""

    def __init__(self, it: Trainer) -> None:
        self.batches: list[dict[str, torch.Tensor]] = []
        step = it.training_step

        def training_step(model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
            self.batches.append({name: value.clone() for name, value in inputs.items()})
            return step(model, inputs, num_items_in_batch)

        it.training_step = training_step  # type: ignore[method-assign]


BAD_AT = {"one": (5,), "another": (5, 9), "next": (5, 6)}
"""Steps, in the data, whose batch is bad."""
LEFT_OUT = {"one": (4, 5), "another": (4, 5, 9), "next": (4, 5, 6)}
"""With a checkpoint at every third step: what lies between it and the accident."""


def make(folder: Path, kind: str, bad: tuple[int, ...], **options: Any) -> Trainer:
    """Ten steps of eight samples, a checkpoint at every third."""
    places = {8 * (step - 1) + 3: math.nan for step in bad}
    data: Any = Broken(places, 160)
    if kind == "stream":
        data = BrokenStream(places, 160)
    elif kind.startswith("stateful"):
        data = BrokenStatefulStream(places, 160)
    settings: dict[str, Any] = {
        "on_nonfinite": "rollback", "max_rollbacks": 2, "max_steps": 10, "save_strategy": "steps", "save_steps": 3,
        "gradient_accumulation_steps": 2, "logging_steps": 2,
    }  # fmt: skip
    return trainer(folder, data, **(settings | options))


@pytest.mark.parametrize("place", ["one", "another", "next"])
@pytest.mark.parametrize("kind", ["samples", "stream", "stateful"])
def test_the_run_is_one_that_never_saw_what_lies_between(kind: str, place: str, tmp_path: Path) -> None:
    it = make(tmp_path / "a", kind, BAD_AT[place], save_total_limit=1)
    seen = Seen(it)
    it.train()
    left_out = LEFT_OUT[place]
    assert it.state.global_step == 10
    assert it.meters.rollbacks == len(BAD_AT[place])
    assert it.meters.nonfinite_positions == list(BAD_AT[place])
    assert len(seen.batches) == 2 * (10 + len(left_out))  # on behind it, not anew from the begin of the data
    looking = make(tmp_path / "look", kind, BAD_AT[place])
    for step in (*BAD_AT[place], 10 + len(left_out)):
        assert torch.equal(looking.batch_at(step)[0]["x"], seen.batches[2 * step - 2]["x"])

    rest = [batch for number, batch in enumerate(seen.batches) if 1 + number // 2 not in left_out]
    by_hand = trainer(tmp_path / "b", Batches(rest), gradient_accumulation_steps=2)
    by_hand.train()
    assert same(weights(it), weights(by_hand))
    assert losses(it) == losses(by_hand)


@pytest.mark.parametrize(("kind", "workers"), [("samples", 0), ("stream", 2), ("stateful", 2)])
def test_a_run_that_is_killed_behind_a_rollback_ends_like_one_that_was_not(
    kind: str, workers: int, tmp_path: Path
) -> None:
    bad = 2 if workers else 3  # two workers that do not share the stream out give each sample twice
    options: dict[str, Any] = {"dataloader_num_workers": workers, "save_steps": 2, "gradient_accumulation_steps": 1}
    whole = make(tmp_path / "whole", kind, (bad,), **options)
    seen = Seen(whole)
    whole.train()
    assert whole.meters.rollbacks == max(1, workers)
    assert whole.meters.nonfinite_positions[0] == 5
    rest = [batch for batch in seen.batches if batch["labels"].isfinite().all()]
    by_hand = trainer(tmp_path / "by hand", Batches(rest))
    by_hand.train()
    assert same(weights(whole), weights(by_hand))
    for step in (2, 4, 8):  # the first two have not met the bad batch yet
        again = make(tmp_path / "whole", kind, (bad,), **options)
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert same(weights(again), weights(whole)), step
        assert losses(again) == losses(whole), step
        assert again.meters.nonfinite_positions == whole.meters.nonfinite_positions


class DiesGoingBack(TrainerCallback):
    def on_rollback(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


def spiking(folder: Path, data: Any, *others: TrainerCallback, **options: Any) -> tuple[Trainer, LossSpikeCallback]:
    spikes = LossSpikeCallback(action="rollback")
    return trainer(folder, data, callbacks=[spikes, *others], **options), spikes


@pytest.mark.parametrize("jumps", [(13,), (13, 15)])
def test_what_was_saved_between_the_jump_and_its_log_line_is_gone(jumps: tuple[int, ...], tmp_path: Path) -> None:
    data = Jumping(*jumps, total=24)
    options = {"logging_steps": 2, "max_steps": 16, "save_strategy": "steps", "save_steps": 1}
    whole, spikes = spiking(tmp_path / "whole", data, **options)
    whole.train()
    assert whole.meters.rollbacks == len(jumps)
    assert spikes.spikes == [14] * len(jumps)
    behind = 15 + 2 * (len(jumps) - 1)
    by_hand = trainer(tmp_path / "b", Chosen(data, [*range(1, 13), *range(behind, behind + 4)]), max_steps=16)
    by_hand.train()
    assert same(weights(whole), weights(by_hand))

    killed, _ = spiking(tmp_path / "killed", data, DiesGoingBack(), **options)
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    again, _ = spiking(tmp_path / "killed", data, **options)
    again.train(resume_from_checkpoint=True)
    assert same(weights(again), weights(whole))
    assert losses(again) == losses(whole)


class Later(Jumping):
    """Jumps in one epoch only."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = super().__getitem__(index)
        return {**sample, "labels": sample["labels"] + 1000 * (self.epoch == 6)}


@pytest.mark.parametrize("epochs", [7, 8])
def test_a_jump_in_the_log_line_of_an_epoch(epochs: int, tmp_path: Path) -> None:
    """Also where it is the last one: its steps are taken on the data of one more."""
    options = {"num_train_epochs": epochs, "logging_strategy": "epoch", "save_strategy": "epoch"}
    it, spikes = spiking(tmp_path / "a", Later(total=3), **options)
    it.train()
    assert (it.meters.rollbacks, it.state.global_step) == (1, 3 * epochs)
    assert spikes.spikes == [21]
    plain = trainer(tmp_path / "b", Jumping(total=3), **options)
    plain.train()
    assert same(weights(it), weights(plain))
    assert losses(it) == losses(plain)


def test_a_run_can_go_back_to_the_checkpoint_it_went_on_from(tmp_path: Path) -> None:
    """Also to one in another folder, and of a run that had gone further."""
    options: dict[str, Any] = {"max_steps": 6, "save_steps": 2, "gradient_accumulation_steps": 1}
    make(tmp_path / "a", "samples", (), **options).train()
    it = make(tmp_path / "b", "samples", (2,), **options)  # of its third step
    it.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert it.meters.rollbacks == 1
    by_hand = trainer(tmp_path / "by hand", Chosen(RegressionData(160), [1, 2, 4, 5, 6, 7]), max_steps=6)
    by_hand.train()
    assert same(weights(it), weights(by_hand))
