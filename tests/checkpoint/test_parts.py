"""Optimizer, scheduler, scaler and random numbers to files and back."""

from __future__ import annotations

import datetime
import random
import sys
from collections import defaultdict, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import TinyRegression

from onward.checkpoint import layout, parts
from onward.errors import BrokenCheckpoint, UnreadableState


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_random_numbers_go_on_where_they_stood(tmp_path: Path) -> None:
    draws()
    parts.write_torch(parts.rng_states(distributed=False), tmp_path / layout.rng_name(0, 1))
    expected = [draws() for _ in range(3)]
    states = parts.load_rng_file(tmp_path, 0, 1)
    assert states is not None
    parts.restore_rng_states(states)
    assert [draws() for _ in range(3)] == expected


def test_another_number_of_processes_has_no_file(tmp_path: Path) -> None:
    parts.write_torch(parts.rng_states(distributed=False), tmp_path / layout.rng_name(0, 1))
    assert parts.load_rng_file(tmp_path, 0, 2) is None


def test_optimizer_and_scheduler_go_on_equal(tmp_path: Path) -> None:
    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        model = TinyRegression()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        optimizer.zero_grad()
        model(torch.ones(2, 4), torch.ones(2))["loss"].backward()
        optimizer.step()
        scheduler.step()

    model, optimizer, scheduler = make()
    step(model, optimizer, scheduler)
    parts.write_torch(optimizer.state_dict(), tmp_path / layout.OPTIMIZER)
    parts.write_torch(scheduler.state_dict(), tmp_path / layout.SCHEDULER)
    again, its_optimizer, its_scheduler = make()
    again.load_state_dict(model.state_dict())
    assert parts.load_optimizer(its_optimizer, its_scheduler, tmp_path)
    for _ in range(3):
        step(model, optimizer, scheduler)
        step(again, its_optimizer, its_scheduler)
    assert its_scheduler.get_last_lr() == scheduler.get_last_lr()
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_optimizer_files_both_start_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not parts.load_optimizer(None, None, tmp_path)
    assert "no optimizer or scheduler state" in caplog.text


def test_a_scaler_comes_back(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    scaler.scale(torch.ones(()))
    parts.write_torch(scaler.state_dict(), tmp_path / layout.SCALER)
    fresh = torch.amp.GradScaler("cpu")
    parts.load_scaler(fresh, tmp_path)
    assert fresh.state_dict() == scaler.state_dict()


def test_a_file_that_is_no_archive_is_a_broken_checkpoint(tmp_path: Path) -> None:
    (tmp_path / layout.OPTIMIZER).write_bytes(b"garbage")
    with pytest.raises(BrokenCheckpoint, match=r"optimizer\.pt cannot be loaded"):
        parts.read_torch(tmp_path / layout.OPTIMIZER)


class Projector:
    """As GaLore and APOLLO keep one for each weight."""

    def __init__(self) -> None:
        self.rank, self.matrix = 2, torch.arange(4.0)


def test_a_projector_comes_back_where_its_package_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / layout.OPTIMIZER
    torch.save({"projector": Projector()}, file)
    with pytest.raises(UnreadableState, match="Projector"):
        parts.read_torch(file)
    package = SimpleNamespace(GaLoreProjector=Projector)
    monkeypatch.setitem(sys.modules, "galore_torch.galore_projector", package)
    parts.write_torch({"projector": Projector()}, file)
    assert torch.equal(parts.read_torch(file)["projector"].matrix, torch.arange(4.0))


class Remembering(torch.optim.SGD):
    """Keeps for each parameter what `torch.optim.Optimizer` breaks when it is handed a state."""

    def remember(self, values: dict[str, Any]) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].update(values)


def test_an_optimizer_gets_back_what_can_be_iterated_over(tmp_path: Path) -> None:
    values = {
        "text": "warm", "array": np.arange(3.0), "window": deque([1.0, 2.0], maxlen=2), "range": frozenset([1]),
        "gaps": defaultdict(list, {1: [2]}), "when": datetime.date(2024, 1, 2), "directions": [torch.ones(2)],
    }  # fmt: skip
    model = TinyRegression()
    optimizer = Remembering(model.parameters(), lr=0.1)
    optimizer.remember(values)
    parts.write_torch(optimizer.state_dict(), tmp_path / layout.OPTIMIZER)
    parts.write_torch({}, tmp_path / layout.SCHEDULER)
    again = Remembering(model.parameters(), lr=0.1)
    parts.load_optimizer(again, torch.optim.lr_scheduler.ConstantLR(again), tmp_path)
    got = again.state[next(model.parameters())]
    assert got["window"].maxlen == 2
    assert got["gaps"].default_factory is list
    np.testing.assert_array_equal(got.pop("array"), values.pop("array"))
    assert torch.equal(got.pop("directions")[0], values.pop("directions")[0])
    assert got == values
