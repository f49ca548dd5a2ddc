"""A disk that is really full: a small tmpfs in a mount namespace of its own, filled while training goes on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.durability.conftest import Victims


def mounting_works() -> str | None:
    """Return why no file system can be mounted here, or None."""
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"mounting is refused here: {tried.stderr.strip()[:200]}"


pytestmark = pytest.mark.skipif(mounting_works() is not None, reason=mounting_works() or "")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    """A server whose working folder has a file system of 8 MB, `disk`."""
    folder = tmp_path_factory.mktemp("full")
    (folder / "disk").mkdir()
    mount = 'mount -t tmpfs -o size=8m tmpfs disk && exec "$@"'
    server = Victims(folder, within=["unshare", "-rm", "sh", "-c", mount, "sh"])
    yield server
    server.close()


@pytest.mark.parametrize("pretrained", [False, True], ids=["plain", "pretrained"])
@pytest.mark.parametrize("through_hooks", [False, True], ids=["beside the loop", "through the hooks"])
def test_training_outlives_a_disk_that_is_full_for_a_while(
    disk: Victims, through_hooks: bool, pretrained: bool
) -> None:
    disk.start("fill", Path("disk/run"), full=4, free=6, through_hooks=through_hooks, pretrained=pretrained)
    assert disk.expect("full") == "28"  # ENOSPC
    assert disk.expect("failed") == "checkpoint-4"
    assert disk.expect("failed") == "checkpoint-5"
    assert disk.expect("ended") == "12"
    assert disk.expect("left") == "[('checkpoint-11', []), ('checkpoint-12', [])]"
    assert disk.wait() == 0, disk.errors.read_text()


@pytest.mark.parametrize("through_hooks", [False, True], ids=["beside the loop", "through the hooks"])
def test_a_disk_that_stays_full_ends_training_with_the_last_good_checkpoints_there(
    disk: Victims, through_hooks: bool
) -> None:
    disk.start("fill", Path("disk/run"), full=4, free=99, through_hooks=through_hooks)
    assert disk.expect("full") == "28"
    assert "3 checkpoints in a row could not be saved (max_failed_saves=3)" in disk.expect("ended")
    assert disk.expect("left") == "[('checkpoint-2', []), ('checkpoint-3', [])]"
    assert disk.wait() == 0, disk.errors.read_text()
