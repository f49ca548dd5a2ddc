"""Staging folders: invisible until committed, swept when and only when their owner is gone."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.checkpoint.conftest import write_checkpoint

from onward.checkpoint import layout, pins, problems, staging
from onward.checkpoint.owner import Owner, current
from onward.checkpoint.staging import Staging, find_staging, sweep
from onward.checkpoint.store import list_checkpoints


def child_owner(code: str) -> subprocess.Popen[str]:
    program = f"""
import time
from pathlib import Path
from onward.checkpoint.staging import Staging
{code}
print('made', flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "made\n"
    return process


def test_nothing_is_visible_before_commit_nor_after_discard(run_dir: Path) -> None:
    made = Staging.create(run_dir / "checkpoint-7")
    (made.path / "file").write_text("x")
    assert list_checkpoints(run_dir) == []
    made.discard()
    assert list(run_dir.iterdir()) == []


def test_a_living_owner_is_left_alone_and_a_killed_one_swept(run_dir: Path) -> None:
    process = child_owner(f"Staging.create(Path({str(run_dir / 'checkpoint-7')!r}))")
    assert process.stdout is not None
    with process, process.stdout:
        assert sweep(run_dir) == []
        assert [each.gone for each in find_staging(run_dir)] == [False]
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(sweep(run_dir)) == 1
    assert list(run_dir.iterdir()) == []


def test_ones_own_staging_is_not_stale(run_dir: Path) -> None:
    Staging.create(run_dir / "checkpoint-7")
    assert find_staging(run_dir) == []


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({"host": "other"}, False),
        ({"boot": "other"}, True),
        ({"namespace": "other"}, False),
        ({"started": "1"}, True),
        ({"pid": 2**22 + 1}, True),
        ({}, False),
    ],
)
def test_who_counts_as_gone(change: dict[str, object], gone: bool) -> None:
    assert dataclasses.replace(current(), **change).is_gone() is gone


def test_an_owner_survives_its_token() -> None:
    assert Owner.from_token(current().token()) == current()
    assert Owner.from_token("something else") is None


def test_a_folder_that_names_no_owner_is_kept(run_dir: Path) -> None:
    (run_dir / f"{layout.STAGING_PREFIX}mystery").mkdir()
    assert sweep(run_dir) == []
    assert [each.gone for each in find_staging(run_dir)] == [False]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_commit_replaces_an_older_checkpoint_of_that_step(
    run_dir: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:  # as on a file system that cannot swap
        monkeypatch.setattr(staging, "_exchange", lambda source, target: False)
    old = write_checkpoint(run_dir, 3, run="old")
    (old / layout.WEIGHTS).write_bytes(b"")
    new = write_checkpoint(run_dir, 3, run="new")
    assert problems(new) == []
    assert [each.run for each in list_checkpoints(run_dir)] == ["new"]
    assert [each.name for each in run_dir.iterdir()] == ["checkpoint-3"]


def test_sweeping_puts_back_a_checkpoint_that_was_moved_aside_and_not_replaced(run_dir: Path) -> None:
    path = write_checkpoint(run_dir, 3)
    gone = dataclasses.replace(current(), started="1")
    outer = run_dir / f"{layout.STAGING_PREFIX}{gone.token()}-0"
    outer.mkdir()
    os.rename(path, outer / "replaced-checkpoint-3")
    sweep(run_dir)
    assert problems(path) == []
    assert [each.name for each in run_dir.iterdir()] == ["checkpoint-3"]


def test_the_pin_of_a_dead_process_holds_nothing(run_dir: Path) -> None:
    path = write_checkpoint(run_dir, 3)
    folder = run_dir / layout.PINS
    folder.mkdir()
    dead = dataclasses.replace(current(), started="1")
    (folder / f"checkpoint-3.{dead.token()}.0").touch()
    assert not pins.is_pinned(path)
    (folder / f"checkpoint-3.{current().token()}.0").touch()
    assert pins.is_pinned(path)
    assert not pins.is_pinned(run_dir / "checkpoint-30")
