"""What is checked of a trainer when it is made, so that nothing fails hours later."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset

from onward.arguments import option
from onward.checkpoint import pickled
from onward.checkpoint.weights import is_peft, is_pretrained, parse_size
from onward.data.order import has_length
from onward.errors import DataError, UnknownMetric, UsageError, did_you_mean
from onward.loop.scoring import is_streaming
from onward.state import check_exported, exportable

if TYPE_CHECKING:
    from onward.hooks.base import TrainerBase

logger = logging.getLogger(__name__)

WITHOUT_COUNTERPART = frozenset(
    {
        "_finalize_training",
        "_init_training_state",
        "_prepare_context_parallel_inputs",
        "_prepare_for_training",
        "_run_epoch",
        "_update_auto_batch_size",
    }
)
"""Parts of transformers' own loop, which a subclass may override there and which nothing calls here."""


def check_parts(model: Any, args: Any, callbacks: Any, optimizers: Any) -> None:
    """Check what the constructor is handed, before it is used.

    Raises:
        UsageError: one of them is no such thing.
    """
    if model is not None and (isinstance(model, type) or not callable(getattr(model, "forward", None))):
        got = f"the class {model.__name__}" if isinstance(model, type) else f"{model!r} ({type(model).__name__})"
        raise UsageError(
            f"model got {got}; expected an nn.Module. Pass the module itself (for example AutoModel....from_pretrained"
            "(name)), or model_init= for a function that makes it."
        )
    if args is not None and not hasattr(args, "output_dir"):
        raise UsageError(
            f"args got {type(args).__name__}; expected TrainingArguments. Write TrainingArguments(output_dir=...)."
        )
    listed = callbacks is None or isinstance(callbacks, list | tuple)
    for callback in (callbacks or []) if listed else [callbacks]:
        if not listed or not any(name.startswith("on_") for name in dir(callback)):
            raise UsageError(
                f"callbacks got {callback!r}; expected a list of callbacks (classes or instances of TrainerCallback)."
            )
    if not isinstance(optimizers, list | tuple) or len(optimizers) != 2:
        raise UsageError(
            f"optimizers got {type(optimizers).__name__}; expected a pair (optimizer, schedule), each of which may be "
            "None: optimizers=(optimizer, None)."
        )


def check_trainer(host: TrainerBase) -> None:
    """Check the constructor's arguments against each other.

    Raises:
        UsageError: they cannot work together; the message says what was got, what was expected, and what to do.
    """
    _check_overrides(type(host))
    _check_optimizer(host)
    _check_evaluation(host)
    _check_data(host)
    parse_size(option(host.args, "max_shard_size"))
    _check_folder(str(host.args.output_dir))


def _check_overrides(kind: type) -> None:
    for owner in kind.__mro__:
        ignored = sorted(WITHOUT_COUNTERPART.intersection(vars(owner)))
        if ignored:
            logger.warning(
                "%s defines %s, which this loop does not have and never calls. Do the same in a hook that it calls "
                "(training_step, get_batch_samples, create_optimizer, _maybe_log_save_evaluate, log) or in a callback.",
                owner.__name__, ", ".join(ignored),
            )  # fmt: skip


def _check_folder(folder: str) -> None:
    """Check that a folder is there or can be made.

    Raises:
        UsageError: there is a file at or above it, or it has no name.
    """
    if not folder:
        raise UsageError("output_dir got ''; expected a folder. '.' is the current one.")
    path = Path(folder).absolute()
    there = next(each for each in (path, *path.parents) if each.exists())
    if not there.is_dir():
        raise UsageError(f"output_dir got {folder!r}, but {there} is a file; expected a folder, there or not yet.")


def _check_optimizer(host: TrainerBase) -> None:
    if host.optimizer is not None and host.optimizer_cls_and_kwargs is not None:
        raise UsageError(
            "Passing both `optimizers` and `optimizer_cls_and_kwargs` arguments is incompatible: one is an "
            "optimizer, the "
            "other says how to make one. Pass one of them."
        )
    if host.optimizer is not None and host.model_init is None:
        held = {id(p) for group in host.optimizer.param_groups for p in group["params"]}
        if not any(id(p) in held for p in host.model.parameters()):
            raise UsageError(
                "The optimizer that was passed in holds none of the model's parameters, so training would change "
                "nothing. Make it from the parameters of the model that is passed in (and after wrapping it)."
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
    metric: Any = host.compute_metrics
    if metric is not None and not callable(metric) and not is_streaming(metric):
        raise UsageError(
            f"compute_metrics got {metric!r}; expected a function from an EvalPrediction to a dictionary of numbers, "
            "or an object with update() and compute()."
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


def check_dataset(dataset: Any, role: str) -> None:
    """Check that a loader can read `dataset`.

    Raises:
        DataError: it is no data set; the message says what to pass instead.
    """
    kind = type(dataset).__name__
    remedy = None
    if dataset is None:
        remedy = "Pass one."
    elif isinstance(dataset, str):
        remedy = f"Load it first, for example with datasets.load_dataset({dataset!r})."
    elif isinstance(dataset, Mapping):
        remedy = f"It is a dictionary of {', '.join(map(str, dataset))}: pass one of its members."
    elif kind == "DataLoader":
        remedy = "Pass its dataset, and the batch size and collator to the arguments and the trainer."
    elif not (hasattr(dataset, "__getitem__") or hasattr(dataset, "__iter__")) or isinstance(dataset, Iterator):
        remedy = "Wrap it: a generator in datasets.IterableDataset.from_generator or a torch IterableDataset."
    if remedy is not None and not isinstance(dataset, IterableDataset):
        raise DataError(
            f"The {role} data is of type {kind}; expected a data set with __getitem__ and __len__, or an iterable one. "
            f"{remedy}"
        )


def check_training(host: TrainerBase) -> None:
    """Check what evaluations will need, before training starts and not at the first of them.

    Raises:
        DataError: there is nothing to evaluate on.
        UnknownMetric: `metric_for_best_model` is nothing that evaluations can yield.
    """
    args = host.args
    if args.eval_strategy == "no" or host.eval_dataset is None or not _is_ours(host.get_eval_dataloader):
        return
    sets = host.eval_dataset if isinstance(host.eval_dataset, dict) else {None: host.eval_dataset}
    for name, dataset in sets.items():
        role = "evaluation" if name is None else f"evaluation ({name})"
        check_dataset(dataset, role)
        if has_length(dataset) and len(dataset) == 0:
            raise DataError(f"The {role} data is empty: it has 0 samples, expected at least one.")
    if not sets:
        raise DataError("eval_dataset is an empty dictionary; expected at least one data set to evaluate on.")
    wanted = args.metric_for_best_model
    if wanted is None or host.compute_metrics is not None or _may_add_metrics(host):
        return
    known = [f"eval_{end}" if name is None else f"eval_{name}_{end}" for name in sets for end in _UNSCORED]
    wanted = wanted if wanted.startswith("eval_") else f"eval_{wanted}"
    if wanted not in known:
        raise UnknownMetric(
            f"metric_for_best_model={args.metric_for_best_model!r}, but without compute_metrics evaluation yields no "
            f"{wanted!r}; there is {', '.join(known)}.{did_you_mean(wanted, known)} Name one of these, or pass a "
            "compute_metrics that returns it."
        )


_UNSCORED = ("loss", "runtime", "samples_per_second", "steps_per_second")


def _is_ours(method: Any) -> bool:
    """Whether a hook is as onward has it, neither overridden nor replaced."""
    return str(getattr(method, "__module__", "")).startswith("onward.")


def _may_add_metrics(host: TrainerBase) -> bool:
    """Whether something of the user's may bring metrics: a hook, or a callback, which is handed the dictionary."""
    if not (_is_ours(host.evaluate) and _is_ours(host.evaluation_loop) and _is_ours(host.log)):
        return True
    packages = {type(callback).__module__.partition(".")[0] for callback in host.callback_handler.callbacks}
    return not packages <= {"onward", "transformers"}


def check_states(host: TrainerBase) -> None:
    """Check that what checkpoints hold can be read again: behind the first step, when the optimizer has a state.

    Raises:
        UnreadableState: something cannot; the message says what of which state, and what to do.
    """
    args = host.args
    if args.save_strategy == "no":
        return  # who saves all the same hears of it then
    for callback in exportable(host.callback_handler.callbacks):
        check_exported(callback)
    if host.feed is not None:
        host.feed.state_dict()
    if host.is_fsdp_enabled or host.is_deepspeed_enabled:
        return  # each has a way of its own to keep them
    model = host._unwrapped(host.model)
    written_here = (
        _is_ours(host.save_model) and _is_ours(host._save) and not is_pretrained(model) and not is_peft(model)
    )
    if written_here:
        pickled.check(dict(model.state_dict()), f"the state of {type(model).__name__}")
    if not args.save_only_model and _is_ours(host._save_optimizer_and_scheduler):
        pickled.check(host.optimizer.state_dict(), "the state of the optimizer")
        pickled.check(host.lr_scheduler.state_dict(), "the state of the lr_scheduler")
