import gc
import subprocess
import sys
import threading
import weakref

import pytest
import torch

from onward import Trainer, TrainerCallback, TrainingArguments
from onward.errors import UsageError
from onward.memory import MemoryTracker, old_objects_frozen, peak_figures, reset_peak
from tests.tiny import RegressionData, TinyRegression

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


def test_the_peak_is_not_that_of_the_process_that_started_this_one():
    block = torch.ones(1024 * MB, dtype=torch.uint8)
    code = "from onward.memory import peak_figures; print(peak_figures('train')['train_peak_memory_rss'])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 50 * MB < int(done.stdout) < block.numel()


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


class Cycle:
    """Only the garbage collector can free it."""

    def __init__(self):
        self.itself = self


class Littering(TrainerCallback):
    """Leaves cycles behind in each step, and looks at what the collector leaves alone."""

    def __init__(self, fails_at=None):
        self.fails_at, self.frozen, self.alive = fails_at, [], []
        self.made = weakref.WeakSet()

    def on_step_end(self, args, state, control, **kwargs):
        self.frozen.append(gc.get_freeze_count())
        for _ in range(500):
            self.made.add(Cycle())
        self.alive.append(len(self.made))
        if state.global_step == self.fails_at:
            raise RuntimeError("in the middle")


def littered_run(folder, callback):
    args = TrainingArguments(str(folder), max_steps=20, report_to="none", use_cpu=True, save_strategy="no")
    Trainer(TinyRegression(), args, train_dataset=RegressionData(), callbacks=[callback]).train()


def test_training_freezes_old_objects_and_still_collects_new_ones(tmp_path):
    assert gc.get_freeze_count() == 0
    callback = Littering()
    littered_run(tmp_path, callback)
    assert min(callback.frozen) > 10_000
    assert gc.get_freeze_count() == 0
    assert gc.isenabled()
    assert max(callback.alive) < 20 * 500 / 2, "cycles were not collected while training"
    with pytest.raises(RuntimeError, match="in the middle"):
        littered_run(tmp_path, Littering(fails_at=3))
    assert gc.get_freeze_count() == 0


def test_objects_that_somebody_else_froze_stay_frozen():
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        with old_objects_frozen():
            assert gc.get_freeze_count() == before
        assert gc.get_freeze_count() == before
    finally:
        gc.unfreeze()
