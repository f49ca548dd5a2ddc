"""Two processes over gloo, on data that divides evenly between them."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..models import Regression, classifier, labelled, llama, pad, points, ragged, tokens
from .evaluating import accuracy
from .registry import ranks
from .steering import ByKeywords


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


COUNTED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2}


@ranks(2)
def two_ranks_counted_apart(stage: Any) -> Any:
    """Each rank divides by its own items."""
    return stage.train(llama(), ragged(32), {"data_collator": pad}, average_tokens_across_devices=False, **COUNTED)


@ranks(2)
def two_ranks_loss_function(stage: Any) -> Any:
    """A loss of the user's, over the items of all ranks, in training and evaluation."""

    def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        logits = outputs["logits"][:, :-1].flatten(0, 1).float()
        total = nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
        return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)

    parts = {"data_collator": pad, "compute_loss_func": loss, "eval_dataset": ragged(8, seed=1)}
    return stage.train(llama(), ragged(32), parts, eval_strategy="epoch", **COUNTED)


@ranks(2)
def two_ranks_smoothed(stage: Any) -> Any:
    """Label smoothing of a causal language model that is told the number of items."""
    return stage.train(llama(), ragged(32), {"data_collator": pad}, label_smoothing_factor=0.1, **COUNTED)


@ranks(2)
def two_ranks_told_the_number_of_items(stage: Any) -> Any:
    """A plain module that divides by it."""
    model = ByKeywords()
    return {**stage.train(model, points(32), save_strategy="epoch", **COUNTED), "told": model.told}


@ranks(2)
def two_ranks_loss_overridden(stage: Any) -> Any:
    """`compute_loss` by hand, over a model that takes the number of items and is not told."""

    class Own(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            outputs = model(**inputs)
            return (outputs["loss"] * 2, outputs) if return_outputs else outputs["loss"] * 2

    parts = {"train_dataset": ragged(32), "data_collator": pad}
    return stage.finish(stage.trainer(llama(), stage.arguments(**COUNTED), Own, **parts))


@ranks(2)
def two_ranks_steered(stage: Any) -> Any:
    """A callback evaluates, saves, ends an epoch and, before the optimizer moves, the run."""

    class Steering(stage.lib.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_evaluate |= state.global_step == 2
            control.should_epoch_stop |= state.global_step == 3
            control.should_save |= state.global_step == 5

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop |= state.global_step == 6

    parts = {"callbacks": [Steering()], "eval_dataset": points(8, seed=1)}
    return stage.train(Regression(), points(32), parts, **COUNTED)
