"""Saving and resuming on two real ranks (gloo): one writes, each keeps its random numbers, failures reach both."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Told = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What both ranks told about each scenario."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.checkpoint.two_ranks"], cwd=tmp_path_factory.mktemp("ranks"), capture_output=True,
        text=True, check=False, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    scenarios: Told = {}
    for line in done.stdout.splitlines():
        if line.startswith('{"scenario"'):
            entry = json.loads(line)
            scenarios.setdefault(entry["scenario"], []).append(entry)
    assert all(sorted(each["rank"] for each in entries) == [0, 1] for entries in scenarios.values())
    return scenarios


@pytest.mark.parametrize("way", ["beside", "through"])
def test_each_rank_has_its_random_numbers_and_a_resume_is_exact(told: Told, way: str) -> None:
    for entry in told[way]:
        assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(entry["files"])
        assert "rng_state.pth" not in entry["files"]
        assert entry["equal"]


def test_a_rank_that_cannot_write_stops_both_after_three_failures_with_nothing_committed(told: Told) -> None:
    for entry in told["failing"]:
        assert entry["said"].startswith("SaveFailed: 3 checkpoints in a row")
        assert "No space left on device" in entry["said"]
        assert entry["saved"] == []
        assert entry["step"] == 3


def test_a_bug_on_one_rank_ends_both(told: Told) -> None:
    said = {entry["rank"]: entry["said"] for entry in told["bug"]}
    assert said[1] == "TypeError: a bug"
    assert "TypeError: a bug" in said[0]


def test_both_refuse_a_broken_checkpoint_and_both_take_the_same_whole_one(told: Told) -> None:
    assert all("optimizer.pt is missing" in entry["said"] for entry in told["broken"])
    assert all(entry["said"] == "fine" for entry in told["newest"])
    assert [entry["step"] for entry in told["newest"]] == [3, 3]


NODE = """
import warnings
warnings.simplefilter("ignore")
from tests.checkpoint.two_ranks import Through, trainer, numbers, tell
from onward.checkpoint import list_checkpoints, problems
for name, cls in (("beside", None), ("through", Through)):
    whole = trainer(name, *filter(None, [cls]), save_on_each_node=True)
    whole.train()
    whole_ones = [(each.step, problems(each.path)) for each in list_checkpoints(name)]
    resumed = trainer(name, *filter(None, [cls]), save_strategy="no")
    resumed.train(resume_from_checkpoint=f"{name}/checkpoint-2")
    left = [each.name for each in list_checkpoints(name)[0].path.parent.glob(".*")]
    tell(name, whole=whole_ones, left=left, equal=numbers(whole) == numbers(resumed))
"""


def test_two_machines_without_a_shared_folder_each_keep_a_checkpoint(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = []
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        nodes.append(
            subprocess.Popen(
                [sys.executable, "-c", NODE],
                cwd=tmp_path / str(rank),
                env={**os.environ, **place, **meet},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    for node in nodes:
        output = node.communicate(timeout=600)[0]
        told = [json.loads(line) for line in output.splitlines() if line.startswith('{"scenario"')]
        assert [each["scenario"] for each in told] == ["beside", "through"], output
        for each in told:
            assert each["whole"] == [[step, []] for step in (1, 2, 3, 4)]
            assert each["left"] == []
            assert each["equal"]
