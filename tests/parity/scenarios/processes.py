"""Two processes over gloo, on data that divides evenly between them."""

from __future__ import annotations

from typing import Any

from ..models import Regression, classifier, labelled, llama, pad, points, ragged, tokens
from .evaluating import accuracy
from .registry import ranks


@ranks(2)
def two_ranks(stage: Any) -> Any:
    """A causal language model with equal lengths."""
    return stage.train(llama(), tokens(32), per_device_train_batch_size=4, num_train_epochs=2)


@ranks(2)
def two_ranks_accumulated(stage: Any) -> Any:
    """Ragged lengths: a loss over the items of all micro-batches of all ranks."""
    parts = {"data_collator": pad}
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    return stage.train(llama(), ragged(32), parts, **changes)


@ranks(2)
def two_ranks_each_by_its_own_count(stage: Any) -> Any:
    """The same, but each rank divides by the items of its own."""
    parts = {"data_collator": pad}
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    return stage.train(llama(), ragged(32), parts, average_tokens_across_devices=False, **changes)


@ranks(2)
def two_ranks_plain_module(stage: Any) -> Any:
    """Gradients averaged over ranks."""
    changes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "save_strategy": "epoch"}
    return stage.train(Regression(), points(32), num_train_epochs=2, **changes)


@ranks(2)
def two_ranks_evaluation(stage: Any) -> Any:
    """Metrics over all samples once, on data that does not divide evenly."""
    parts = {"eval_dataset": labelled(13, seed=1), "compute_metrics": accuracy}
    changes = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 2, "eval_strategy": "epoch"}
    return stage.train(classifier(), labelled(32), parts, num_train_epochs=2, **changes)
