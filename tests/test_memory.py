import subprocess
import sys
import threading

import pytest
import torch

from onward.errors import UsageError
from onward.memory import MemoryTracker, peak_figures, reset_peak

MB = 2**20


def test_peaks_are_bytes_and_never_fall():
    reset_peak()
    before = peak_figures("train")
    block = torch.ones(64 * MB, dtype=torch.uint8)
    during = peak_figures("train")
    del block
    after = peak_figures("train")
    assert list(before) == ["train_peak_memory_rss"]
    assert before["train_peak_memory_rss"] > 50 * MB
    assert after["train_peak_memory_rss"] >= during["train_peak_memory_rss"] >= before["train_peak_memory_rss"]


def test_a_block_that_lives_only_inside_the_stage_is_a_peak_and_not_held():
    code = """
import torch
from onward.memory import MemoryTracker
MB = 2**20
tracker = MemoryTracker()
tracker.start("init"); kept = torch.ones(96 * MB, dtype=torch.uint8); tracker.stop_and_update_metrics(stage="init")
tracker.start("train"); block = torch.ones(256 * MB, dtype=torch.uint8); del block
metrics = {}
tracker.stop_and_update_metrics(metrics, stage="train")
assert abs(metrics["train_mem_cpu_peaked_delta"] - 256 * MB) < 32 * MB, metrics
assert abs(metrics["train_mem_cpu_alloc_delta"]) < 32 * MB, metrics
assert abs(metrics["init_mem_cpu_alloc_delta"] - 96 * MB) < 32 * MB, metrics
"""
    subprocess.run([sys.executable, "-c", code], check=True)


class Face:
    """Calls the tracker as a subclass written for transformers does."""

    def __init__(self, tracker):
        self.tracker = tracker
        tracker.start()
        tracker.stop_and_update_metrics()

    def evaluate(self):
        metrics = {}
        self.tracker.start()
        self.tracker.stop_and_update_metrics(metrics)
        return metrics

    def predict(self):
        metrics = {}
        self.tracker.start()
        self.tracker.stop_and_update_metrics(metrics)
        return metrics

    def train(self):
        metrics = {}
        self.tracker.start()
        inner = self.evaluate()
        self.tracker.stop_and_update_metrics(metrics)
        return metrics, inner


def test_key_names_are_those_of_transformers():
    from transformers.trainer_utils import TrainerMemoryTracker

    def keys(tracker):
        face = Face(tracker)
        trained, inner = face.train()
        return [set(trained), set(inner), set(face.evaluate()), set(face.predict())]

    ours = keys(MemoryTracker())
    assert ours == keys(TrainerMemoryTracker())
    assert "before_init_mem_cpu" in ours[0]
    assert ours[1] == set()
    assert "test_mem_cpu_peaked_delta" in ours[3]


def test_a_stage_that_failed_can_begin_again():
    tracker = MemoryTracker()
    tracker.start("train")
    tracker.start("train")
    metrics = {}
    tracker.stop_and_update_metrics(metrics, stage="train")
    assert "train_mem_cpu_alloc_delta" in metrics
    for thread in threading.enumerate():
        if thread.name == "onward-memory":
            thread.join(timeout=60)  # it ends at its next look
    assert not [thread for thread in threading.enumerate() if thread.name == "onward-memory"]


def test_skipped_it_does_nothing():
    tracker = MemoryTracker(skip_memory_metrics=True)
    assert Face(tracker).train() == ({}, {})
    assert not [thread for thread in threading.enumerate() if thread.name == "onward-memory"]


def test_an_unknown_caller_is_told_to_name_the_stage():
    with pytest.raises(UsageError, match=r"test_an_unknown_caller.*init, train, eval, test"):
        MemoryTracker().start()
