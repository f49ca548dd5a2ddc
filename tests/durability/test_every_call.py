"""A process that dies at any one file-system call of a save leaves nothing that is not whole.

strace delivers SIGKILL when the call is entered: once for the first `openat` of a save, once for the second, and so on
for every call of every kind that a save makes, rotation and the manifest included.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from tests.durability.conftest import Victims, assert_whole

from onward.checkpoint import list_checkpoints, resolve_checkpoint
from onward.checkpoint.staging import sweep

CALLS = (
    "openat,write,pwrite64,writev,close,fsync,fdatasync,ftruncate,fallocate,mkdir,rename,renameat,renameat2,unlink,unlinkat,"
    "rmdir,chmod,fchmod,fcntl,utimensat,copy_file_range,sendfile,mmap,msync,getdents64,lseek,newfstatat"
)
DECISIVE = ("fsync", "rename", "renameat2", "unlinkat", "rmdir", "mkdir", "write")


def strace_works() -> str | None:
    """Return why strace cannot be used here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"strace may not trace here: {tried.stderr.strip()[:200]}"


pytestmark = pytest.mark.skipif(strace_works() is not None, reason=strace_works() or "")


def traced_save(victims: Victims, folder: Path, through_hooks: bool, options: list[str], log: Path) -> int:
    """Do one save under strace; return how the process ended."""
    pid = victims.start("save", folder, through_hooks=through_hooks)
    victims.expect("ready")
    tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(pid), "-o", str(log), *options], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr is not None
    with tracer, tracer.stderr:
        assert "attached" in tracer.stderr.readline()
        victims.send(do="go")
        code = victims.wait()
    return code


@pytest.fixture(scope="module", params=[True, False], ids=["through the hooks", "beside the loop"])
def counted(
    request: pytest.FixtureRequest, victims: Victims, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bool, Counter[str]]:
    """How often the busiest thread of a save makes each call."""
    folder = tmp_path_factory.mktemp("count")
    log = folder / "log"
    assert traced_save(victims, folder / "run", request.param, ["-e", f"trace={CALLS}"], log) == 0
    per_thread: dict[str, Counter[str]] = {}
    for line in log.read_text().splitlines():
        if match := re.match(r"(\d+) +(\w+)\(", line):
            per_thread.setdefault(match[1], Counter())[match[2]] += 1
    calls: Counter[str] = Counter()
    for counter in per_thread.values():
        calls |= counter
    assert calls["fsync"] > 8
    assert calls["rename"] + calls["renameat2"] >= 2
    return request.param, calls


@pytest.mark.parametrize("through_hooks", [True, False], ids=["through the hooks", "beside the loop"])
def test_all_is_flushed_before_the_rename_and_the_folder_behind_it(
    through_hooks: bool, victims: Victims, tmp_path: Path
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    assert traced_save(victims, folder, through_hooks, ["-y", "-e", "trace=fsync,rename,renameat2"], log) == 0
    done = re.findall(r"(fsync)\(\d+<([^>]+)>|(rename)\w*\(.*(checkpoint-3)\W*\)", log.read_text())
    names = [Path(path).name if call else other for call, path, other, _ in done]
    commit = names.index("rename")
    files = {each.name for each in (folder / "checkpoint-3").iterdir()}
    assert set(names[:commit]) == files | {"checkpoint-3"}
    last = max(number for number, name in enumerate(names[:commit]) if name in files)
    assert names[last] == "onward_manifest.json"
    assert names.index("checkpoint-3") > last
    assert done[commit + 1][:2] == ("fsync", str(folder))


def moments(calls: Counter[str], everything: bool) -> list[tuple[str, int]]:
    """Return the calls to die at: all of them, or a sample that has each kind."""
    if everything:
        return [(call, number) for call, total in sorted(calls.items()) for number in range(1, total + 1)]
    sample = []
    for call in DECISIVE:
        total = calls[call]
        sample += [(call, number) for number in {1, (total + 1) // 2, total} if 0 < number <= total]
    return sample


@pytest.mark.parametrize(
    "everything",
    [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
    ids=["sample", "all"],
)
def test_death_at_a_call(
    everything: bool, counted: tuple[bool, Counter[str]], victims: Victims, tmp_path: Path
) -> None:
    through_hooks, calls = counted
    died = 0
    chosen = moments(calls, everything)
    for index, (call, number) in enumerate(chosen):
        folder = tmp_path / str(index) / "run"
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
        died += traced_save(victims, folder, through_hooks, inject, tmp_path / "log") == -signal.SIGKILL
        assert_whole(folder)
        newest = resolve_checkpoint(True, folder)
        assert newest is not None, (call, number)
        assert newest.name in ("checkpoint-2", "checkpoint-3"), (call, number)
        sweep(folder)
        assert not list(folder.glob(".onward-staging-*")), (call, number)
        assert 1 <= len(list_checkpoints(folder)) <= 3
        shutil.rmtree(folder.parent)
    assert died > 0.8 * len(chosen), f"only {died} of {len(chosen)} died: the calls were not met"
