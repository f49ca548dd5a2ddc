"""Every file of the newest checkpoint, every kind of damage: training goes on from the one before, and says so."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.durability.conftest import assert_equal
from tests.durability.damage import delete, empty, flip, truncate
from tests.durability.victim import STEPS, make_trainer, weights_of

from onward.checkpoint import list_checkpoints, problems
from onward.checkpoint.manifest import read

FILES = (
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "training_args.bin",
    "onward_state.json",
    "onward_manifest.json",
)


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run that saved at steps 1 to 9, and the weights that it would have ended with at step 12."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    trainer = make_trainer(str(folder), save_total_limit=None)
    trainer.train()
    for step in range(10, STEPS + 1):
        shutil.rmtree(folder / f"checkpoint-{step}")
    return folder, weights_of(trainer)


def test_the_list_of_files_is_complete(halfway: tuple[Path, dict[str, torch.Tensor]]) -> None:
    assert {each.name for each in (halfway[0] / "checkpoint-9").iterdir()} == set(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncate, empty, delete, flip])
def test_a_damaged_checkpoint_is_skipped(
    name: str,
    damage: Callable[[Path], None],
    halfway: tuple[Path, dict[str, torch.Tensor]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for step in (8, 9):
        shutil.copytree(halfway[0] / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    damage(folder / "checkpoint-9" / name)
    trainer = make_trainer(str(folder), save_steps=STEPS)
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    told = [record.getMessage() for record in caplog.records if "It is skipped" in record.getMessage()]
    assert len(told) == 1
    assert str(folder / "checkpoint-9") in told[0]
    assert name in told[0]
    assert_equal(weights_of(trainer), halfway[1])
    assert [each.step for each in list_checkpoints(folder)] == [8, 9, STEPS]


@pytest.mark.parametrize("position", range(0, 100, 7))
def test_no_bit_of_the_manifest_goes_unnoticed(
    position: int, halfway: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    """A flipped bit is seen, or it changed nothing that the manifest says (white space)."""
    folder = tmp_path / "checkpoint-9"
    shutil.copytree(halfway[0] / "checkpoint-9", folder)
    file = folder / "onward_manifest.json"
    before = read(folder)
    data = bytearray(file.read_bytes())
    data[len(data) * position // 100] ^= 1 << (position % 8)
    file.write_bytes(data)
    if not problems(folder):
        assert read(folder) == before
