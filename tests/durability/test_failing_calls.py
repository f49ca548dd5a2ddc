"""File-system calls of a save that fail: training goes on, nothing whole is lost, and what can be saved is saved.

strace lets single calls fail with the errors of broken, full, read-only and network disks.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.durability.conftest import Victims, assert_whole
from tests.durability.test_every_call import pytestmark as pytestmark, traced_save

from onward.checkpoint import list_checkpoints

FAILS = [  # the call, which of its calls in the save of step 3, and how it fails
    ("mkdir", "2", "EACCES"),
    ("mkdir", "3", "EROFS"),
    ("fsync", "2", "EIO"),
    ("rename", "1", "EXDEV"),
    ("rename", "1", "ESTALE"),
]


@pytest.mark.parametrize("through_hooks", [False, True], ids=["beside the loop", "through the hooks"])
@pytest.mark.parametrize(("call", "number", "error"), FAILS)
def test_a_save_that_fails_is_made_up_for(
    call: str, number: str, error: str, through_hooks: bool, victims: Victims, tmp_path: Path
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    inject = ["-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={number}"]
    assert traced_save(victims, folder, through_hooks, inject, log) == 0, victims.errors.read_text()
    assert "(INJECTED)" in log.read_text()
    assert_whole(folder)
    # Tried again at the end. strace counts the calls of each thread for itself, so in the writer's that fails too.
    assert [each.step for each in list_checkpoints(folder)] == [3 if through_hooks else 2]
    assert not list(folder.glob(".onward-staging-*"))


@pytest.mark.parametrize("through_hooks", [False, True], ids=["beside the loop", "through the hooks"])
def test_a_disk_that_cannot_be_written_keeps_the_last_good_checkpoint(
    through_hooks: bool, victims: Victims, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    inject = ["-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1+"]
    assert traced_save(victims, folder, through_hooks, inject, tmp_path / "log") == 0, victims.errors.read_text()
    assert_whole(folder)
    assert [each.step for each in list_checkpoints(folder)] == [2]


def test_a_file_system_that_cannot_flush_folders_is_no_reason_to_save_nothing(victims: Victims, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    folder.mkdir()
    inject = ["-e", "trace=fsync", "-e", "inject=fsync:error=EINVAL", "-P", str(folder)]
    assert traced_save(victims, folder, False, inject, log) == 0, victims.errors.read_text()
    assert "(INJECTED)" in log.read_text()
    assert_whole(folder)
    assert [each.step for each in list_checkpoints(folder)] == [3]


def test_a_file_system_that_refuses_direct_writes_is_written_through_its_cache(
    victims: Victims, tmp_path: Path
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    inject = ["-e", "trace=fcntl", "-e", "inject=fcntl:error=EINVAL"]
    assert traced_save(victims, folder, False, inject, log) == 0, victims.errors.read_text()
    assert "(INJECTED)" in log.read_text()
    assert_whole(folder)
    assert [each.step for each in list_checkpoints(folder)] == [3]
