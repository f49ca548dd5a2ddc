"""Memory that an evaluation takes: logits of 512 tokens per sample and a vocabulary, over a growing number of samples.

With the same settings, `compute_metrics` over everything, all logits are kept by both. With the best ones, a metric
that takes in batch after batch (transformers' `batch_eval_metrics`, an object with `update` and `compute` in onward),
memory should not grow with the set. That is shown on the larger sets: 10,000 samples, and 2,000 where all is kept.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from benchmarks.peers import forget_peak, peak, peers, resident
from benchmarks.result import HAND, ONWARD, TRANSFORMERS, Figure, Result, Settings, check_losses

DEVICES = ("cpu",)
LENGTH, VOCABULARY, BATCH = 512, 64, 8


class Counting(nn.Module):
    """A model whose logits cost nothing but their memory."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, VOCABULARY)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.table(input_ids)
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


class Tokens(Dataset[dict[str, torch.Tensor]]):
    """Samples made when they are asked for."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        ids = (torch.arange(LENGTH) * (at + 7)) % VOCABULARY
        return {"input_ids": ids, "labels": ids.roll(-1)}


class Accuracy:
    """A streaming metric, in the three forms that the peers take."""

    def __init__(self) -> None:
        self.right = self.seen = 0

    def update(self, predictions: Any, labels: Any) -> None:
        hits = torch.as_tensor(predictions).argmax(-1) == torch.as_tensor(labels)
        self.right += int(hits.sum())
        self.seen += hits.numel()

    def compute(self) -> dict[str, float]:
        found, self.right, self.seen = self.right / self.seen, 0, 0
        return {"accuracy": found}

    def per_batch(self, prediction: Any, compute_result: bool) -> dict[str, float]:
        self.update(prediction.predictions, prediction.label_ids)
        return self.compute() if compute_result else {}

    def whole(self, prediction: Any) -> dict[str, float]:
        # In slices: the metric's own temporaries are not what is measured.
        for at in range(0, len(prediction.label_ids), BATCH):
            self.update(prediction.predictions[at : at + BATCH], prediction.label_ids[at : at + BATCH])
        return self.compute()


def answer(peer: str, question: dict[str, Any]) -> dict[str, Any]:
    """In a peer's process: evaluate `samples`; the memory above what was held before, and the metrics."""
    work: Callable[[], dict[str, float]]
    with tempfile.TemporaryDirectory() as folder:
        work = by_hand(question["samples"]) if peer == HAND else with_trainer(peer, folder, question)
        before = resident()
        forget_peak()
        metrics = work()
        grown = max(0, peak() - before)
    return {"grown": grown, "loss": metrics["eval_loss"], "accuracy": metrics["eval_accuracy"]}


def by_hand(samples: int) -> Callable[[], dict[str, float]]:
    """The floor: one batch at a time."""
    model, metric, losses = Counting().eval(), Accuracy(), []

    @torch.no_grad()
    def work() -> dict[str, float]:
        for batch in torch.utils.data.DataLoader(Tokens(samples), batch_size=BATCH):
            outputs = model(**batch)
            losses.append(outputs["loss"].item())
            metric.update(outputs["logits"], batch["labels"])
        return {"eval_loss": sum(losses) / len(losses), "eval_accuracy": metric.compute()["accuracy"]}

    return work


def with_trainer(peer: str, folder: str, question: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """A trainer of either library, made ready."""
    library: Any = importlib.import_module(peer)
    metric = Accuracy()
    forms = {"whole": metric.whole, "streaming": metric if peer == ONWARD else metric.per_batch}
    args = library.TrainingArguments(
        output_dir=folder,
        per_device_eval_batch_size=BATCH,
        batch_eval_metrics=question["form"] == "streaming" and peer == TRANSFORMERS,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        use_cpu=True,
    )
    parts = {"eval_dataset": Tokens(question["samples"]), "compute_metrics": forms[question["form"]]}
    trainer = library.Trainer(model=Counting(), args=args, **parts)
    trainer.remove_callback(library.PrinterCallback)
    work: Callable[[], dict[str, float]] = trainer.evaluate
    return work


def measure(settings: Settings) -> list[Result]:
    """Memory for a small and a large set, with everything kept and with a streaming metric."""
    # transformers joins what it keeps anew at each batch: ten minutes for 10,000 samples, and memory grows long before.
    large = {
        "whole": settings.pick(full=2_000, quick=800, smoke=64),
        "streaming": settings.pick(full=10_000, quick=4_000, smoke=64),
    }
    rounds = settings.pick(full=3, quick=1, smoke=1)
    runs = [(form, samples) for form, most in large.items() for samples in (most // 10, most)]
    grown: dict[tuple[str, str, int], list[float]] = {}
    losses: dict[tuple[str, int], dict[str, list[float]]] = {run: {} for run in runs}
    with peers("evaluation", [HAND, TRANSFORMERS, ONWARD]) as started:
        for peer in started.values():
            peer.ask(samples=BATCH, form="streaming")  # imports and first allocations
        for _ in range(rounds):
            for form, samples in runs:
                for name, peer in started.items():
                    found = peer.ask(samples=samples, form=form)
                    grown.setdefault((name, form, samples), []).append(found["grown"] / 1e6)
                    losses[form, samples][name] = [found["loss"], found["accuracy"]]
    checks = {run: check_losses(found, HAND, 1e-5) for run, found in losses.items()}
    kept = {f"{name}, {form}, {samples}": values for (name, form, samples), values in grown.items()}
    results = []
    for table, form, title in (
        ("same", "whole", "evaluation memory, metric over everything"),
        ("best", "streaming", "evaluation memory, streaming metric"),
    ):
        most = large[form]
        figures = {name: Figure(tuple(grown[name, form, most])) for name in (HAND, TRANSFORMERS, ONWARD)}
        # Flat: within a few batches of logits of the floor, whatever the size of the set.
        limit = figures[HAND].median + 20 if form == "streaming" else None
        notes = {"samples": most, "MB at each size": kept, "MB of all logits": most * LENGTH * VOCABULARY * 4 / 1e6}
        checked = checks[form, most]
        results.append(Result("evaluation", title, "MB", figures, table, target=limit, checked=checked, notes=notes))
    return results
