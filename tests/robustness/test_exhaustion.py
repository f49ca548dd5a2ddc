"""Memory that really runs out: a process whose address space the kernel limits, so that torch's allocator fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

SCRIPT = Path(__file__).with_name("hungry.py")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS and /proc")


def run(folder: Path, *options: str, ranks: int = 1) -> tuple[list[dict[str, Any]], str]:
    folder.mkdir()
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
    command = [*launcher, str(SCRIPT), str(folder), *options]
    # Address space must stand for memory. A further arena takes 64 MB of it, and tensors in the heap leave gaps there:
    # in pages of their own they come and go without a trace.
    environment = dict(os.environ) | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(ranks)], output


def assert_same_end(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["steps"] == other["steps"] == 6
    assert one["losses"] == pytest.approx(other["losses"], abs=1e-5)
    for a, b in zip(one["weights"], other["weights"], strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize("stream", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_that_does_not_fit_is_taken_again(stream: bool, tmp_path: Path) -> None:
    kind = ["--stream"] if stream else []
    (hit,), output = run(tmp_path / "hit", "--at", "2", "--room", "100", *kind)
    assert "DefaultCPUAllocator: can't allocate memory" in output
    assert "Out of memory at step 3" in output
    assert hit["found"] < 8
    (small,), _ = run(tmp_path / "small", "--batch", str(hit["found"]), "--accumulation", str(8 // hit["found"]), *kind)
    assert_same_end(hit, small)
    assert set(hit["seen"][-4:]) == {hit["found"]}


@pytest.mark.slow
def test_one_of_two_ranks_runs_out(tmp_path: Path) -> None:
    # Accumulated, so that the other rank goes on to the second micro-batch meanwhile.
    kind = ["--buffers", "--accumulation", "2"]
    both, output = run(tmp_path / "hit", "--at", "2", "--room", "100", "--rank", "1", *kind, ranks=2)
    assert "another process ran out of memory" in output
    assert both[0]["weights"] == both[1]["weights"]
    assert both[0]["found"] == both[1]["found"] < 8
    found = both[0]["found"]
    small, _ = run(tmp_path / "small", "--batch", str(found), "--accumulation", str(16 // found), ranks=2)
    assert_same_end(both[0], small[0])


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_evaluation_and_prediction_shrink_their_own_batch(ranks: int, tmp_path: Path) -> None:
    hit, output = run(tmp_path / "hit", "--evaluate", "--room", "50", ranks=ranks)
    assert "Out of memory in evaluation" in output
    free, _ = run(tmp_path / "free", "--evaluate", "--room", "4000", ranks=ranks)
    assert hit[0]["loss"] == pytest.approx(free[0]["loss"], abs=1e-5)
    assert hit[0]["predictions"] == pytest.approx(free[0]["predictions"], abs=1e-6)
    assert max(hit[0]["seen"][-6:]) < 8


def test_the_example_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    script = ROOT / "examples" / "out_of_memory.py"
    done = subprocess.run(
        [sys.executable, str(script), "--output-dir", str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "Out of memory at step 4" in done.stderr
    assert "steps 8 and 8" in done.stdout
    assert float(done.stdout.split()[-1]) < 1e-5
