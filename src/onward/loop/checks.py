"""What is checked of a trainer when it is made, so that nothing fails hours later."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset

from onward.data.order import has_length
from onward.errors import DataError, UsageError

if TYPE_CHECKING:
    from onward.hooks.base import TrainerBase


def check_trainer(host: TrainerBase) -> None:
    """Check the constructor's arguments against each other.

    Raises:
        UsageError: they cannot work together; the message says what was got, what was expected, and what to do.
    """
    _check_optimizer(host)
    _check_evaluation(host)
    _check_data(host)


def _check_optimizer(host: TrainerBase) -> None:
    if host.optimizer is not None and host.optimizer_cls_and_kwargs is not None:
        raise UsageError(
            "Passing both `optimizers` and `optimizer_cls_and_kwargs` arguments is incompatible: one is an "
            "optimizer, the "
            "other says how to make one. Pass one of them."
        )
    if host.model_init is not None and (host.optimizer is not None or host.lr_scheduler is not None):
        raise UsageError(
            "Passing a `model_init` is incompatible with providing the `optimizers` argument: each train() makes a "
            "new model, "
            "and an optimizer belongs to one model. Override create_optimizer_and_scheduler, or pass "
            "optimizer_cls_and_kwargs."
        )


def _check_evaluation(host: TrainerBase) -> None:
    args = host.args
    if args.eval_strategy is not None and args.eval_strategy != "no" and host.eval_dataset is None:
        raise UsageError(
            f"eval_strategy is '{getattr(args.eval_strategy, 'value', args.eval_strategy)}' but there is no "
            "eval_dataset. "
            "Pass eval_dataset= to the Trainer, or set eval_strategy='no'."
        )
    if (args.save_strategy == "best" or args.load_best_model_at_end) and args.metric_for_best_model is None:
        raise UsageError(
            "save_strategy='best' and load_best_model_at_end=True need to know what is best, but "
            "metric_for_best_model is None. "
            "Set it to a key of the evaluation metrics, for example 'eval_loss'."
        )
    if args.batch_eval_metrics and host.compute_metrics is not None and inspect.isroutine(host.compute_metrics):
        takes = inspect.signature(host.compute_metrics).parameters
        if "compute_result" not in takes:
            raise UsageError(
                "batch_eval_metrics=True calls compute_metrics once per batch, with a boolean `compute_result` that "
                "is true for the last "
                f"one; yours takes ({', '.join(takes)}). Add the argument `compute_result`."
            )


def _check_data(host: TrainerBase) -> None:
    args, data = host.args, host.train_dataset
    if not callable(host.data_collator):
        raise TypeError(
            "The `data_collator` should be a simple callable (function, class with `__call__`), got "
            f"{type(host.data_collator).__name__}."
        )
    if data is not None and args.train_sampling_strategy == "length_aware" and not _has_index(data):
        raise UsageError(
            f"train_sampling_strategy='length_aware' looks at the lengths of all samples before the first step, but "
            f"the train_dataset ({type(data).__name__}) is a stream. Use a map-style data set, or "
            "train_sampling_strategy='random'."
        )
    if data is not None and not has_length(data) and args.max_steps <= 0:
        raise DataError(
            f"The train_dataset ({type(data).__name__}) does not implement __len__, so the end of training is "
            "unknown, and "
            f"max_steps is {args.max_steps}. max_steps has to be specified: set it to the number of optimizer steps."
        )


def _has_index(data: Any) -> bool:
    return has_length(data) and not isinstance(data, IterableDataset)
