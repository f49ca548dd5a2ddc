"""A whole checkpoint to damage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny import TinyRegression

from onward.checkpoint import layout, parts
from onward.checkpoint.record import RunRecord
from onward.checkpoint.staging import Staging
from onward.checkpoint.weights import save_weights
from onward.state import TrainerState


def write_checkpoint(folder: Path, step: int, run: str = "run-a", commit: bool = True) -> Path:
    """Commit a real checkpoint of a tiny model (or write it as transformers does, without our files)."""
    model = TinyRegression()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4), torch.ones(2))["loss"].backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    target = folder / layout.name_of(step)
    staging = Staging.create(target) if commit else None
    place = target if staging is None else staging.path
    save_weights(model, place)
    parts.write_torch(optimizer.state_dict(), place / layout.OPTIMIZER)
    parts.write_torch(scheduler.state_dict(), place / layout.SCHEDULER)
    parts.write_torch(parts.rng_states(distributed=False), place / layout.rng_name(0, 1))
    TrainerState(global_step=step).save_to_json(place / layout.TRAINER_STATE)
    if staging is not None:
        RunRecord(run=run, step=step).write(place)
        staging.commit(run, step)
    return target


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """An empty run folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    return folder
