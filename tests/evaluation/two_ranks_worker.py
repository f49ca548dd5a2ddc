"""Run by torchrun: evaluations over two processes with both libraries; each process writes down what it got."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers
from tests.evaluation.sides import timeless, trainer
from tests.tiny import (
    ClassData,
    RegressionStream,
    TinyClassifier,
    TinyRegression,
    pad_tokens,
    tiny_llama,
    token_data,
)
from torch import nn
from torch.utils.data import DataLoader

import onward

SAMPLES = 11  # two processes and batches of two: the last global batch holds three samples and a duplicate


class Seen:
    def __init__(self):
        self.calls = []

    def __call__(self, prediction, compute_result=None):
        self.calls.append((*prediction, compute_result))
        return {"rows": len(prediction.predictions)}


class Mean:
    """A streaming metric."""

    def __init__(self):
        self.sum, self.seen, self.order = 0.0, 0, []

    def update(self, predictions, labels):
        self.sum += float(predictions.double().sum())
        self.seen += len(labels)
        self.order += labels.tolist()

    def compute(self):
        return {"sum": self.sum, "seen": self.seen}


def run(lib, model, folder, data, **changes):
    """Evaluate and predict; returns everything that came back."""
    metric, parts = changes.pop("metric", None) or Seen(), changes.pop("parts", {})
    parts = {"eval_dataset": data, "compute_metrics": metric, **parts}
    subject = trainer(lib, model, folder, parts=parts, per_device_eval_batch_size=2, **changes)
    metrics = subject.evaluate()
    predicted = subject.predict(data)
    return {
        "metrics": timeless(metrics),
        "seen": getattr(metric, "calls", None) or (metric.seen, metric.order),
        "predicted": (predicted.predictions, predicted.label_ids, timeless(predicted.metrics)),
    }


class Twice(nn.Module):
    """A classifier with two outputs."""

    def __init__(self):
        super().__init__()
        self.inner = TinyClassifier()

    def forward(self, x, labels=None):
        found = self.inner(x, labels)
        return {**found, "twice": 2 * found["logits"]}


def scenarios(lib, folder):
    ragged = token_data(SAMPLES, (3, 9))
    found = {
        "whole": run(lib, TinyClassifier(), folder, ClassData(SAMPLES)),
        "even": run(lib, TinyClassifier(), folder, ClassData(12)),
        "fewer than a batch": run(lib, TinyClassifier(), folder, ClassData(1)),
        "ragged": run(lib, tiny_llama(), folder, ragged, parts={"data_collator": pad_tokens},
                      include_for_metrics=["inputs", "loss"]),
        "by batch": run(lib, TinyClassifier(), folder, ClassData(SAMPLES), batch_eval_metrics=True),
        "lists": run(lib, TinyClassifier(), folder, ClassData(SAMPLES), eval_do_concat_batches=False),
        "several sets": run(lib, TinyClassifier(), folder, ClassData(SAMPLES),
                            parts={"eval_dataset": {"a": ClassData(5), "b": ClassData(3)}}),
    }  # fmt: skip
    stream = trainer(
        lib, TinyRegression(), folder, parts={"compute_metrics": Seen()}, per_device_eval_batch_size=2,
        accelerator_config={"dispatch_batches": False},
    )  # fmt: skip
    found["stream"] = {"metrics": timeless(stream.evaluate(RegressionStream(SAMPLES)))}
    return found


def main(folder):
    found = {}
    for name, lib in (("theirs", transformers), ("ours", onward)):
        torch.manual_seed(0)
        found[name] = scenarios(lib, folder / name)
    found["streaming"] = run(onward, TinyClassifier(), folder / "s", ClassData(SAMPLES), metric=Mean())
    found["objects"] = run(onward, TinyClassifier(), folder / "s", ClassData(SAMPLES), eval_use_gather_object=True)
    found["two outputs as objects"] = trainer(
        onward, Twice(), folder / "s", per_device_eval_batch_size=2, eval_use_gather_object=True
    ).predict(ClassData(SAMPLES))
    subject = trainer(onward, TinyClassifier(), folder / "s", parts={"compute_metrics": Seen()})
    loader = DataLoader(ClassData(4), batch_size=2)  # not split: both processes see all of it
    found["own loader"] = timeless(subject.evaluation_loop(loader, "Evaluation").metrics)
    torch.save(found, folder / f"rank{subject.args.process_index}.pt")
    subject.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
