"""Buffers of unusual kinds: saved, put back with a step that is left out, rolled back and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onward import Trainer, TrainingArguments
from onward.checkpoint import buffers, weights
from tests.tiny import RegressionData, TinyRegression


class Noting(TinyRegression):
    """Notes the mean of every input that it is trained on, each kind in its own way."""

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        if self.training:
            self.note(x.detach().mean().reshape(1))
        return super().forward(x, labels)

    def note(self, mean: Tensor) -> None:
        raise NotImplementedError


class Grows(Noting):
    """Another tensor, longer each time."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.register_buffer("seen", torch.zeros(0))

    def note(self, mean: Tensor) -> None:
        self.seen = torch.cat([self.seen, mean])


class GrowsInPlace(Grows):
    """The same tensor, longer each time."""

    def note(self, mean: Tensor) -> None:
        self.seen.resize_(len(self.seen) + 1)
        self.seen[-1] = mean


class GrowsTwice(Grows):
    """One tensor under two names."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.body.register_buffer("seen_too", self.seen)

    def note(self, mean: Tensor) -> None:
        super().note(mean)
        self.body.seen_too = self.seen


class FromNone(Noting):
    """None before the first step."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.register_buffer("mean", None)

    def note(self, mean: Tensor) -> None:
        self.mean = mean if self.mean is None else 0.9 * self.mean + mean


class Expanded(Noting):
    """One number seen as four by three, written to in place."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.register_buffer("mean", torch.ones(1, 1).expand(4, 3))

    def note(self, mean: Tensor) -> None:
        self.mean[:1, :1] += mean


class ExpandedAnew(Expanded):
    """Expanded anew each time."""

    def note(self, mean: Tensor) -> None:
        self.mean = (self.mean[:1, :1] + mean).expand(4, 3)


class Overlapping(Noting):
    """A tensor and a part of it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        self.register_buffer("whole", torch.zeros(6))
        self.register_buffer("part", self.whole[:3])

    def note(self, mean: Tensor) -> None:
        self.part += mean
        self.whole[2:5] += 1


KINDS: list[type[Noting]] = [Grows, GrowsInPlace, GrowsTwice, FromNone, Expanded, ExpandedAnew, Overlapping]


def make(kind: type[Noting], folder: Path, accident: str, **options: Any) -> Trainer:
    data = RegressionData(48)
    if accident:
        data.labels[9] = float("nan")
        options["on_nonfinite"] = accident
    args = TrainingArguments(
        output_dir=str(folder), max_steps=8, save_steps=2, per_device_train_batch_size=4, seed=3, report_to=[],
        disable_tqdm=True, use_cpu=True, logging_steps=1, **options,
    )  # fmt: skip
    return Trainer(kind(), args, train_dataset=data)


def buffers_of(trainer: Trainer) -> dict[str, Tensor]:
    return dict(trainer.model.named_buffers(remove_duplicate=False))


@pytest.mark.parametrize("accident", ["", "skip", "rollback"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_resume_goes_on_exactly(kind: type[Noting], accident: str, tmp_path: Path) -> None:
    whole = make(kind, tmp_path, accident)
    whole.train()
    assert whole.meters.nonfinite_steps == bool(accident)
    wanted = buffers_of(whole)
    for step in (2, 6):
        again = make(kind, tmp_path, accident)
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        got = buffers_of(again)
        assert got.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.equal(got[name], value), f"{name}, from step {step}"
            assert got[name].stride() == value.stride()
        for one, parameter in again.model.named_parameters():
            assert torch.equal(parameter, whole.model.get_parameter(one))


def test_a_step_that_is_left_out_is_not_noted(tmp_path: Path) -> None:
    """Eight steps, one of which was left out."""
    trainer = make(Grows, tmp_path, "skip")
    trainer.train()
    assert len(trainer.model.seen) == 7


def test_a_synchronous_save_leaves_a_buffer_that_can_grow(tmp_path: Path) -> None:
    trainer = make(GrowsInPlace, tmp_path, "", async_save=False)
    trainer.train()
    assert len(trainer.model.seen) == 8


def test_one_tensor_under_two_names_is_one_again(tmp_path: Path) -> None:
    model = GrowsTwice()
    model.note(torch.ones(1))
    weights.save_weights(model, tmp_path)
    again = GrowsTwice(seed=1)
    assert weights.load_weights(again, tmp_path) == ([], [])
    assert again.body.seen_too is again.seen
    assert again.seen.tolist() == [1.0]


def test_a_module_that_loads_in_its_own_way_is_left_to_it() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(0))

        def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
            self.seen = state_dict[f"{prefix}seen"] * 2

    model = nn.Sequential(Own())
    with buffers.fitted(model, {"0.seen": torch.ones(3)}) as state:
        model.load_state_dict(state)
    assert model[0].seen.tolist() == [2.0, 2.0, 2.0]


def test_parameters_of_another_shape_are_still_refused(tmp_path: Path) -> None:
    weights.save_weights(nn.Linear(3, 2), tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        weights.load_weights(nn.Linear(4, 2), tmp_path)


def test_what_is_distinct_of_a_tensor() -> None:
    base = torch.arange(6.0).reshape(2, 3)
    assert buffers.distinct(base) is base
    assert buffers.distinct(base.t()).shape == (3, 2)
    assert buffers.distinct(base[:, None].expand(2, 5, 3)).shape == (2, 1, 3)
    assert buffers.distinct(torch.ones(()).expand(3, 0)).shape == (1, 0)
