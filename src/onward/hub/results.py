"""Read a run's log lines: the last evaluation, the figures of training, and all evaluations as a table."""

from __future__ import annotations

import re
from typing import Any

Logs = list[dict[str, Any]]

# Names of metrics that the Hub knows and can filter by.
HUB_METRICS = [
    "accuracy", "bleu", "cer", "exact_match", "f1", "matthews_correlation", "mse", "pearsonr", "perplexity",
    "precision", "recall", "roc_auc", "rouge", "sacrebleu", "spearmanr", "wer",
]  # fmt: skip
# What an evaluation also logs, which is about the machine and not about the model.
SPEED = ("_runtime", "_per_second", "_preparation_time", "_compilation_time")
LONGEST_TABLE = 60


def scores(line: dict[str, Any]) -> dict[str, float]:
    """The metrics of an evaluation's log line without ``eval_``; empty for other lines."""
    return {
        name.removeprefix("eval_"): value
        for name, value in line.items()
        if name.startswith("eval_") and not name.endswith(SPEED) and isinstance(value, int | float)
    }


def last_evaluation(logs: Logs) -> dict[str, float]:
    """The metrics of the last step at which there was an evaluation (of all evaluation sets)."""
    steps = [line.get("step") for line in logs if scores(line)]
    merged: dict[str, float] = {}
    for line in logs:
        if steps and line.get("step") == steps[-1]:
            merged |= scores(line)
    return merged


def training_figures(logs: Logs) -> dict[str, float]:
    """Loss and duration of training as the last line of `train` gives them."""
    for line in reversed(logs):
        if "train_runtime" in line:
            wanted = ["train_loss", "train_runtime", "train_samples_per_second", "total_flos"]
            return {name: line[name] for name in wanted if name in line}
    return {}


def metric_names(metrics: dict[str, float]) -> list[str]:
    """The Hub's names of the metrics that it knows among these."""
    return [name for name in HUB_METRICS if any(re.match(rf"{name}(_|\d|L|$)", key) for key in metrics)]


def evaluation_table(logs: Logs) -> tuple[list[str], list[list[Any]], int]:
    """Return header, rows (one per step with an evaluation, first and last always), and how many rows are left out."""
    rows: dict[Any, dict[str, Any]] = {}
    loss = None
    for line in logs:
        loss = line.get("loss", loss)
        if found := scores(line):
            start = {"step": line.get("step"), "epoch": line.get("epoch"), "training loss": loss}
            rows.setdefault(line.get("step"), start).update(found)
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    every = list(rows.values())
    kept = thin(every, LONGEST_TABLE)
    return columns, [[row.get(name) for name in columns] for row in kept], len(every) - len(kept)


def thin(rows: list[Any], most: int) -> list[Any]:
    """At most `most` rows, evenly spread, with the first and the last."""
    if len(rows) <= most:
        return rows
    return [rows[round(place * (len(rows) - 1) / (most - 1))] for place in range(most)]
