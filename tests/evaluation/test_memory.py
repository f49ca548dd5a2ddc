"""Evaluation that does not grow: peak memory of real processes."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest
from tests.evaluation.sides import trainer
from tests.tiny import ClassData, RegressionStream, TinyClassifier, TinyRegression

import onward

MB = 2**20
WORKER = """
import json
import sys
import torch
from torch import nn
from torch.utils.data import Dataset
import onward
from onward.memory import peak_figures

WIDTH = 2**18  # 1 MB of float32 logits a sample

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
    def forward(self, x, labels=None):
        logits = (self.scale * x[:, None]).expand(-1, WIDTH).contiguous()
        return {"loss": logits[:, 0].mean(), "logits": logits}

class Numbers(Dataset):
    def __init__(self, samples):
        self.samples = samples
    def __len__(self):
        return self.samples
    def __getitem__(self, index):
        return {"x": torch.tensor(float(index)), "labels": torch.tensor(0)}

class Mean:
    def __init__(self): self.total, self.seen = 0.0, 0
    def update(self, logits, labels): self.total += float(logits[:, 0].sum()); self.seen += len(labels)
    def compute(self): return {"mean": self.total / self.seen}

def whole(prediction):
    return {"mean": float(prediction.predictions[:, 0].mean())}

def by_batch(prediction, compute_result=False, kept=[]):
    kept.append(float(prediction.predictions[:, 0].mean()))
    if compute_result:
        mean = sum(kept) / len(kept)
        kept.clear()
        return {"mean": mean}

def peak_after(kind, samples):
    metric = {"none": None, "streaming": Mean(), "by batch": by_batch, "whole": whole}[kind]
    args = onward.TrainingArguments(
        sys.argv[1], per_device_eval_batch_size=8, report_to=[], use_cpu=True, disable_tqdm=True,
        batch_eval_metrics=kind == "by batch",
    )
    metrics = onward.Trainer(Wide(), args, eval_dataset=Numbers(samples), compute_metrics=metric).evaluate()
    assert kind == "none" or metrics["eval_mean"] == (samples - 1) / 2
    return peak_figures("eval")["eval_peak_memory_rss"]

# The peak of a process never falls, so the one that needs most comes last.
kinds = ["none", "streaming", "by batch", "whole"]
for kind in kinds:
    small = peak_after(kind, 16)
figures = {kind: peak_after(kind, 256) - small for kind in kinds}
print(json.dumps(figures))
"""


@pytest.mark.slow
def test_memory_is_flat_unless_everything_is_wanted_and_then_it_is_held_once(tmp_path):
    """The logits of the larger set take 240 MB more than those of the smaller one."""
    done = subprocess.run([sys.executable, "-c", WORKER, str(tmp_path)], check=True, capture_output=True, text=True)
    growth = json.loads(done.stdout.splitlines()[-1])
    for kind in ("none", "streaming", "by batch"):
        assert growth[kind] < 60 * MB, growth
    assert 100 * MB < growth["whole"] < 400 * MB, growth  # two copies would take 480


@pytest.fixture
def low_limit(monkeypatch):
    monkeypatch.setattr("onward.loop.evaluate._WARN_FROM", 100)


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if "predictions" in record.getMessage()]


def test_one_warning_estimates_the_total_and_names_the_streaming_way(tmp_path, caplog, low_limit):
    parts = {"eval_dataset": ClassData(1000), "compute_metrics": lambda prediction: {}}
    subject = trainer(onward, TinyClassifier(), tmp_path, parts=parts, per_device_eval_batch_size=100)
    steps = []
    with caplog.at_level(logging.WARNING, logger="onward"):
        subject.add_callback(_Watch(lambda: steps.append(len(warnings_of(caplog)))))
        subject.evaluate()
        subject.evaluate()
    (message,) = warnings_of(caplog)
    assert "1,000 samples (20 bytes a sample)" in message  # three float32 logits and an int64 label
    assert "update() and compute()" in message
    assert "batch_eval_metrics=True" in message
    assert steps[1] == 1, "it comes with the first batch, before the memory is spent"


def test_a_stream_warns_of_what_it_has_kept(tmp_path, caplog, low_limit):
    parts = {"eval_dataset": RegressionStream(20), "compute_metrics": lambda prediction: {}}
    subject = trainer(onward, TinyRegression(), tmp_path, parts=parts)
    with caplog.at_level(logging.WARNING, logger="onward"):
        subject.evaluate()
    (message,) = warnings_of(caplog)
    assert "so far, and growing" in message


@pytest.mark.parametrize("metric", [None, "streaming"])
def test_what_keeps_nothing_warns_of_nothing(tmp_path, caplog, low_limit, metric):
    class Count:
        def update(self, predictions, labels): ...

        def compute(self):
            return 1

    parts = {"eval_dataset": ClassData(1000), "compute_metrics": None if metric is None else Count()}
    with caplog.at_level(logging.WARNING, logger="onward"):
        trainer(onward, TinyClassifier(), tmp_path, parts=parts, per_device_eval_batch_size=100).evaluate()
    assert warnings_of(caplog) == []


def test_small_sets_do_not_warn(tmp_path, caplog):
    parts = {"eval_dataset": ClassData(1000), "compute_metrics": lambda prediction: {}}
    with caplog.at_level(logging.WARNING, logger="onward"):
        trainer(onward, TinyClassifier(), tmp_path, parts=parts, per_device_eval_batch_size=100).evaluate()
    assert warnings_of(caplog) == []


class _Watch(onward.TrainerCallback):
    def __init__(self, look):
        self.look = look

    def on_prediction_step(self, args, state, control, **kwargs):
        self.look()
