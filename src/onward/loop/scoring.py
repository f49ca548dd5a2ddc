"""How an evaluation turns predictions into metrics: batch by batch where it can, else from everything at the end.

Streaming   an object with ``update(predictions, labels)`` and ``compute()``     memory stays flat
PerBatch    ``batch_eval_metrics``: called at each batch, the last one tells      memory stays flat
Whole       ``compute_metrics(EvalPrediction)`` over all samples                  everything is kept
Unscored    no metric
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from onward.errors import UsageError
from onward.gather import plain_numbers
from onward.types import EvalPrediction


@dataclass
class Batch:
    """What one batch of an evaluation yielded, gathered over processes."""

    losses: Any = None
    predictions: Any = None
    labels: Any = None
    inputs: Any = None
    """The model's main input, gathered."""
    raw_inputs: Any = None
    """The whole batch of this process, as it came from the loader."""


class Scorer(Protocol):
    """One way to come to metrics."""

    keeps_predictions: bool
    """Whether predictions and labels of all batches are needed at the end."""

    def take(self, batch: Batch, is_last: bool) -> None:
        """See one batch."""

    def metrics(self, kept: Batch) -> dict[str, Any]:
        """The metrics, without prefix; `kept` holds the arrays of all batches where they were kept."""


def choose_scorer(compute_metrics: Any, args: Any, device: torch.device) -> Scorer:
    """The way that suits what the user passed as ``compute_metrics``."""
    if compute_metrics is None:
        return Unscored()
    include = tuple(args.include_for_metrics)
    if args.batch_eval_metrics:
        return PerBatch(compute_metrics, include)
    if is_streaming(compute_metrics):
        return Streaming(compute_metrics, device)
    return Whole(compute_metrics, include)


def is_streaming(metric: Any) -> bool:
    """Whether a metric takes in batch after batch, as those of torchmetrics do.

    One that can be called itself is a ``compute_metrics`` like any function, whatever else it can do; but calling a
    module would only be its `update`.
    """
    called = callable(metric) and not isinstance(metric, torch.nn.Module)
    return not called and all(callable(getattr(metric, name, None)) for name in ("update", "compute"))


class Unscored:
    """No metric. Predictions that a caller asked for are kept all the same."""

    keeps_predictions = True

    def take(self, batch: Batch, is_last: bool) -> None:
        """Nothing to do."""

    def metrics(self, kept: Batch) -> dict[str, Any]:
        """None."""
        return {}


class Whole:
    """``compute_metrics`` over all samples at the end."""

    keeps_predictions = True

    def __init__(self, compute_metrics: Any, include: tuple[str, ...]) -> None:
        self._compute_metrics = compute_metrics
        self._include = include

    def take(self, batch: Batch, is_last: bool) -> None:
        """Nothing to do before the end."""

    def metrics(self, kept: Batch) -> dict[str, Any]:
        """What ``compute_metrics`` returns; nothing where there are no predictions or no labels."""
        if kept.predictions is None or kept.labels is None:
            return {}
        return _as_metrics(self._compute_metrics(_evidence(kept, self._include, kept.inputs)))


class PerBatch:
    """``compute_metrics(EvalPrediction, compute_result=...)`` at each batch; the last call returns the metrics."""

    keeps_predictions = False

    def __init__(self, compute_metrics: Any, include: tuple[str, ...]) -> None:
        self._compute_metrics = compute_metrics
        self._include = include
        self._returned: Any = {}

    def take(self, batch: Batch, is_last: bool) -> None:
        """Call it, unless there are no predictions or no labels."""
        if batch.predictions is not None and batch.labels is not None:
            evidence = _evidence(batch, self._include, batch.raw_inputs)
            self._returned = self._compute_metrics(evidence, compute_result=is_last)

    def metrics(self, kept: Batch) -> dict[str, Any]:
        """What the last call returned; a metric that returns nothing keeps its results to itself."""
        return {} if self._returned is None else _as_metrics(self._returned)


class Streaming:
    """An object with ``update`` and ``compute``, and perhaps ``reset`` and ``to``.

    Every process sees the gathered batches of all of them, without the duplicates that fill up the last one, so a
    metric that would add up over processes by itself is kept from doing so.
    """

    keeps_predictions = False

    def __init__(self, metric: Any, device: torch.device) -> None:
        self._metric = metric
        if callable(getattr(metric, "to", None)):
            metric.to(device)
        if callable(getattr(metric, "reset", None)):
            metric.reset()

    def take(self, batch: Batch, is_last: bool) -> None:
        """Hand over predictions and labels, unless there are none."""
        if batch.predictions is not None and batch.labels is not None:
            self._metric.update(batch.predictions, batch.labels)

    def metrics(self, kept: Batch) -> dict[str, Any]:
        """What ``compute`` returns; a single value goes by the name of the metric's class, in snake case."""
        with _alone(self._metric):
            computed = self._metric.compute()
        if not isinstance(computed, Mapping):
            computed = {_snake_case(type(self._metric).__name__): computed}
        return {key: value.tolist() if hasattr(value, "tolist") else value for key, value in computed.items()}


@contextlib.contextmanager
def _alone(metric: Any) -> Iterator[None]:
    """Keep torchmetrics from summing over processes what every process has seen in full."""
    parts = metric.modules() if isinstance(metric, torch.nn.Module) else [metric]
    syncing = [part for part in parts if getattr(part, "sync_on_compute", False)]
    for part in syncing:
        part.sync_on_compute = False
    try:
        yield
    finally:
        for part in syncing:
            part.sync_on_compute = True


def _evidence(batch: Batch, include: tuple[str, ...], inputs: Any) -> EvalPrediction:
    return EvalPrediction(
        predictions=batch.predictions,
        label_ids=batch.labels,
        inputs=inputs if "inputs" in include else None,
        losses=batch.losses if "loss" in include else None,
    )


def _as_metrics(returned: Any) -> dict[str, Any]:
    """Numbers that can be written as JSON.

    Raises:
        UsageError: it is no dictionary.
    """
    if not isinstance(returned, Mapping):
        raise UsageError(
            f"compute_metrics returned {type(returned).__name__}, expected a dictionary from names to numbers. "
            'Return for example {"accuracy": 0.9}.'
        )
    metrics: dict[str, Any] = plain_numbers(dict(returned))
    return metrics


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
