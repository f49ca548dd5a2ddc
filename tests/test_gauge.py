"""How much a piece of work takes, and how much there is: by the kernel's own figures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from onward import memory
from onward.gauge import _control_groups, open_gauge, read_group

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="host memory is measured by /proc")
MEGABYTE = 2**20


@pytest.mark.parametrize("megabytes", [16, 64])
def test_what_is_taken_for_a_moment_is_measured(megabytes: int) -> None:
    gauge = open_gauge(torch.device("cpu"))
    assert gauge is not None
    gauge.start()
    held = torch.ones(megabytes * MEGABYTE // 4)
    del held
    assert gauge.taken() / MEGABYTE == pytest.approx(megabytes, abs=4)
    gauge.start()
    assert gauge.taken() < 4 * MEGABYTE


def test_the_peak_of_the_run_is_not_forgotten() -> None:
    held = torch.ones(48 * MEGABYTE // 4)
    del held
    before = memory.peak_figures("train")["train_peak_memory_rss"]
    gauge = open_gauge(torch.device("cpu"))
    assert gauge is not None
    gauge.start()
    assert memory.peak_figures("train")["train_peak_memory_rss"] >= before


def test_processes_share_the_memory_of_the_machine() -> None:
    alone, shared = open_gauge(torch.device("cpu")), open_gauge(torch.device("cpu"), sharers=4)
    assert alone is not None
    assert shared is not None
    for each in (alone, shared):
        each.start()
    assert 0 < shared.room() < alone.room() / 3


def test_a_limit_of_address_space_is_seen() -> None:
    script = (
        "import resource, torch\n"
        "from onward.gauge import open_gauge\n"
        "from onward.memory import process_status\n"
        "gauge = open_gauge(torch.device('cpu'))\n"
        "limit = process_status('VmSize') + 512 * 2**20\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "gauge.start()\n"
        "print((gauge.room() - (512 * 2**20 - limit // 20)) / 2**20)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert abs(float(done.stdout)) < 64  # a thread's arena may have come or gone


def test_control_groups_are_read_from_the_inside_out(tmp_path: Path) -> None:
    (tmp_path / "jobs" / "mine").mkdir(parents=True)
    for name, text in (("max", "4000000\n"), ("current", "3000000\n"), ("stat", "anon 5\ninactive_file 1000000\n")):
        (tmp_path / "jobs" / f"memory.{name}").write_text(text)
    folders = list(_control_groups("0::/jobs/mine\n", tmp_path))
    assert folders == [tmp_path / "jobs" / "mine", tmp_path / "jobs", tmp_path]
    assert [read_group(folder) for folder in folders] == [None, (4_000_000, 2_000_000), None]
    (tmp_path / "jobs" / "memory.max").write_text("max\n")
    assert read_group(tmp_path / "jobs") is None


def test_control_groups_of_version_one(tmp_path: Path) -> None:
    group = tmp_path / "memory" / "mine"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("4000000\n")
    (group / "memory.usage_in_bytes").write_text("3000000\n")
    (group / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 500000\n")
    folders = list(_control_groups("4:memory:/mine\n3:cpuset:/\n", tmp_path))
    assert folders == [group, tmp_path / "memory"]
    assert [read_group(folder) for folder in folders] == [(4_000_000, 2_500_000), None]


def test_other_devices_are_not_measured() -> None:
    assert open_gauge(torch.device("meta")) is None
