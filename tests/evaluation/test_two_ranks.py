"""Evaluation over two real processes: the duplicates that fill up the last batch are dropped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.evaluation.sides import assert_same
from tests.evaluation.two_ranks_worker import SAMPLES, run
from tests.tiny import ClassData, TinyClassifier

import onward

WORKER = Path(__file__).with_name("two_ranks_worker.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc-per-node", "2", WORKER, folder]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same in one process."""
    return run(onward, TinyClassifier(), tmp_path_factory.mktemp("alone"), ClassData(SAMPLES))


SCENARIOS = ["whole", "even", "fewer than a batch", "ragged", "by batch", "lists", "several sets", "stream"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_give_what_transformers_gives(ranks, name):
    for rank in ranks:
        assert_same(rank["ours"][name], rank["theirs"][name])


def test_both_processes_come_to_the_same(ranks):
    for name in SCENARIOS:
        assert_same(ranks[0]["ours"][name], ranks[1]["ours"][name])


def test_predictions_are_those_of_one_process_in_order_and_without_duplicates(ranks, alone):
    predictions, labels, _ = ranks[1]["ours"]["whole"]["predicted"]
    assert predictions.shape == (SAMPLES, 3)
    np.testing.assert_allclose(predictions, alone["predicted"][0], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(labels, alone["predicted"][1])


def test_the_loss_of_full_batches_is_that_of_one_process(ranks, tmp_path):
    one = run(onward, TinyClassifier(), tmp_path, ClassData(12))
    assert ranks[0]["ours"]["even"]["metrics"]["eval_loss"] == pytest.approx(one["metrics"]["eval_loss"], abs=1e-6)


def test_a_streaming_metric_sees_each_sample_once_in_each_process(ranks, alone):
    for rank in ranks:
        metrics = rank["streaming"]["metrics"]
        assert metrics["eval_seen"] == SAMPLES
        assert metrics["eval_sum"] == pytest.approx(float(alone["predicted"][0].astype(np.float64).sum()), abs=1e-4)
        assert rank["streaming"]["seen"][1][:SAMPLES] == alone["predicted"][1].tolist()


def test_what_is_gathered_as_objects_is_one_row_a_sample(ranks, alone):
    rows, labels, metrics = ranks[0]["objects"]["predicted"]
    assert isinstance(rows, list)
    np.testing.assert_allclose(np.stack(rows), alone["predicted"][0], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(np.stack(labels), alone["predicted"][1])
    assert metrics["test_loss"] == ranks[0]["ours"]["whole"]["metrics"]["eval_loss"]


def test_several_outputs_that_are_gathered_as_objects_stay_apart(ranks, alone):
    (rows, twice), labels, _ = ranks[1]["two outputs as objects"]
    np.testing.assert_allclose(np.stack(rows), alone["predicted"][0], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(np.stack(twice), 2 * np.stack(rows))
    np.testing.assert_array_equal(np.stack(labels), alone["predicted"][1])


def test_a_loader_that_is_not_split_is_gathered_from_both(ranks):
    assert ranks[0]["own loader"]["eval_rows"] == 8
