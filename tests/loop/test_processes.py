"""One batch of N, N accumulated batches of one, or N processes: the same samples, the same result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("several.py")
SPLITS = {"one batch": (1, 8, 1), "accumulated": (1, 2, 4), "two processes": (2, 4, 1), "both": (2, 2, 2)}


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ACCELERATE = [
    "-m",
    "accelerate.commands.accelerate_cli",
    "launch",
    "--multi_gpu",
    "--main_process_port=0",
    "--num_processes",
]


def trained(
    kind: str, size: int, split: tuple[int, int, int], out: Path, *resume: str, launcher: list[str] = TORCHRUN
) -> dict[str, Any]:
    ranks, batch, accumulation = split
    out.mkdir()
    start = [sys.executable, *launcher, str(ranks)] if ranks > 1 else [sys.executable]
    command = [*start, str(SCRIPT), kind, *map(str, (size, batch, accumulation)), str(out), *resume]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return torch.load(out / "0.pt", weights_only=True)


def assert_close(got: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
    assert got["losses"] == pytest.approx(wanted["losses"], rel=1e-5), where
    for name, value in wanted["weights"].items():
        assert torch.allclose(got["weights"][name], value, rtol=0, atol=1e-6), f"{where}: {name}"


SINGLE_AT_THE_END = 17
LONGER = [pytest.param(24, marks=pytest.mark.slow), pytest.param(21, marks=pytest.mark.slow)]  # full, short


@pytest.mark.parametrize("size", [SINGLE_AT_THE_END, *LONGER])
def test_splits_of_variable_length_data_agree(size: int, tmp_path: Path) -> None:
    results = {name: trained("tokens", size, split, tmp_path / name) for name, split in SPLITS.items()}
    for name, result in results.items():
        assert_close(result, results["one batch"], f"{name} of {size}")


@pytest.mark.parametrize("size", [SINGLE_AT_THE_END, *LONGER])
def test_processes_agree_for_a_model_with_a_mean_loss(size: int, tmp_path: Path) -> None:
    one = trained("regression", size, (1, 8, 1), tmp_path / "one")
    two = trained("regression", size, (2, 4, 1), tmp_path / "two", launcher=ACCELERATE)
    assert_close(two, one, f"two of {size}")


@pytest.mark.parametrize("kind", ["regression evaluated", "regression compiled evaluated"])
def test_processes_agree_also_behind_an_evaluation_of_the_untrained_model(kind: str, tmp_path: Path) -> None:
    one = trained("regression", 17, (1, 8, 1), tmp_path / "one")
    two = trained(kind, 17, (2, 4, 1), tmp_path / "two")
    assert_close(two, one, "two, evaluated first")


@pytest.mark.slow
def test_a_stream_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    one = trained("stream", 24, (1, 8, 1), tmp_path / "one")
    to_two = str(tmp_path / "one" / "run" / "checkpoint-2")
    two = trained("stream", 24, (2, 4, 1), tmp_path / "two", to_two)
    assert_close(two, one, "two processes")
    back = str(tmp_path / "two" / "run" / "checkpoint-4")
    assert_close(trained("stream", 24, (1, 4, 2), tmp_path / "back", back), one, "back to one")


def assert_resumed(kind: str, size: int, split: tuple[int, int, int], out: Path, steps: list[int]) -> dict[str, Any]:
    """Train, go on from the checkpoints of some steps, and compare to the bit; returns what the whole run came to."""
    whole = trained(kind, size, split, out / "whole")
    for step in steps:
        resumed = trained(kind, size, split, out / str(step), str(out / "whole" / "run" / f"checkpoint-{step}"))
        assert resumed["losses"] == whole["losses"], f"from step {step}"
        for name, value in whole["weights"].items():
            assert torch.equal(resumed["weights"][name], value), f"{name} from step {step}"
    return whole


@pytest.mark.slow
def test_epochs_of_a_stream_with_a_length_are_shared_and_resumed_at_their_ends(tmp_path: Path) -> None:
    two = assert_resumed("stream with a length", 22, (2, 4, 1), tmp_path, [3, 4])
    assert_close(two, trained("stream with a length", 22, (1, 8, 1), tmp_path / "one"), "two processes")


@pytest.mark.slow
def test_processes_end_a_pass_together_where_the_shards_of_one_are_shorter(tmp_path: Path) -> None:
    whole = assert_resumed("shards", 24, (2, 2, 2), tmp_path, [3, 4])
    assert len(whole["losses"]) == 6


@pytest.mark.parametrize(
    ("kind", "size", "split"),
    [
        ("tokens", 21, (2, 2, 2)),  # at the end of the epoch one process has a sample, the other has none
        pytest.param("regression", 21, (2, 2, 2), marks=pytest.mark.slow),
        pytest.param("regression", 23, (2, 1, 4), marks=pytest.mark.slow),
    ],
)
def test_micro_batches_that_grew_are_the_same_steps(
    kind: str, size: int, split: tuple[int, int, int], tmp_path: Path
) -> None:
    small = trained(kind, size, split, tmp_path / "small")
    grown = trained(f"{kind}+grow", size, split, tmp_path / "grown")
    assert_close(grown, small, f"{split} of {size}")
    assert grown["found"] == 4


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    one = trained("tokens", SINGLE_AT_THE_END, (1, 8, 1), tmp_path / "one")
    checkpoint = str(tmp_path / "one" / "run" / "checkpoint-2")
    for name, split in (("two processes", (2, 4, 1)), ("accumulated", (1, 2, 4))):
        went_on = trained("tokens", SINGLE_AT_THE_END, split, tmp_path / name, checkpoint)
        assert_close(went_on, one, name)
    back = str(tmp_path / "two processes" / "run" / "checkpoint-4")
    assert_close(trained("tokens", SINGLE_AT_THE_END, (1, 8, 1), tmp_path / "back", back), one, "back to one")


def test_length_aware_steps_agree_with_random_ones_on_any_number_of_processes(tmp_path: Path) -> None:
    random = trained("tokens", 21, SPLITS["one batch"], tmp_path / "random")
    two = trained("tokens by length", 21, SPLITS["both"], tmp_path / "two")
    assert_close(two, random, "two processes by length")
    checkpoint = str(tmp_path / "two" / "run" / "checkpoint-2")
    back = trained("tokens by length", 21, SPLITS["accumulated"], tmp_path / "one", checkpoint)
    assert_close(back, random, "back to one process")


@pytest.mark.slow
def test_blocks_compiled_below_ddp_train_as_plain_ones(tmp_path: Path) -> None:
    plain = trained("tokens", 24, SPLITS["one batch"], tmp_path / "plain")
    assert_close(trained("tokens by blocks", 24, SPLITS["both"], tmp_path / "blocks"), plain, "two by blocks")
