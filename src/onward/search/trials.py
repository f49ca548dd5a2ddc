"""One trial: its hyperparameters, its training, and what is given back after it."""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward import engine
from onward.callbacks import CallbackHandler
from onward.errors import UsageError
from onward.loss import LabelSmoother
from onward.meters import Meters
from onward.search.applying import apply, check_names, split, takes_trial
from onward.state import TrainerControl, TrainerState, exportable

if TYPE_CHECKING:
    from onward.hooks.searching import SearchHooks

logger = logging.getLogger(__name__)


def hyperparameters_of(host: SearchHooks, trial: Any) -> dict[str, Any]:
    """What a trial sets: a dictionary as it is, and what ``hp_space`` makes of a trial of Optuna.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(trial, Mapping):
        return {name: value for name, value in trial.items() if name != "wandb"}
    if not hasattr(trial, "params"):
        raise UsageError(
            f"train(trial=...) got a {type(trial).__name__}; expected an optuna.Trial, a dictionary of hyperparameters "
            "or the configuration of a trial of Ray Tune."
        )
    space = host.hp_space(trial) if host.hp_space is not None else None
    return dict(trial.params if space is None else space)


def open_trial(host: SearchHooks, trial: Any) -> None:
    """Begin a trial: its own state, its hyperparameters in the arguments.

    Raises:
        UsageError: see `apply_trial`.
    """
    # An error from here on belongs to this trial, not to the one before.
    host.state = TrainerState(is_hyper_param_search=True)
    host.state.is_local_process_zero = host.is_local_process_zero()
    host.state.is_world_process_zero = host.is_world_process_zero()
    hyperparameters = apply_trial(host, trial)
    host.state.trial_name = name_of(host, trial)
    if host._reporter is not None:
        host._reporter.opened(host, trial)
    shown = ", ".join(f"{name}={value}" for name, value in hyperparameters.items())
    logger.info("%s trains with %s.", host.state.trial_name or "The trial", shown or "the arguments as they are")


def apply_trial(host: SearchHooks, trial: Any) -> dict[str, Any]:
    """Put a trial's hyperparameters into the arguments, and into what was made from them; return them.

    The arguments are first what they were before the trial that was applied before.

    Raises:
        UsageError: see `onward.search.applying.apply`; or there are values for a ``model_init`` that takes none.
    """
    if host._overrides is not None:
        host._overrides.take_back(host.args)
        host._overrides = None
    hyperparameters = hyperparameters_of(host, trial)
    check_names(host.args, hyperparameters, host.model_init)
    own, for_model = split(host.args, hyperparameters)
    if for_model and not takes_trial(host.model_init):
        raise UsageError(
            f"A trial sets {', '.join(for_model)} for the model, but there is no model_init(trial) to take it. "
            "Give model_init one parameter, the trial, and read it there."
        )
    host._overrides = apply(host.args, own)
    engine.allow_precision(host.args.mixed_precision)
    host._train_batch_size = host.args.train_batch_size
    host.neftune_noise_alpha = host.args.neftune_noise_alpha
    if "label_smoothing_factor" in own:
        factor = host.args.label_smoothing_factor
        host.label_smoother = LabelSmoother(epsilon=factor) if factor else None
    host.create_accelerator_and_postprocess()
    return hyperparameters


def name_of(host: SearchHooks, trial: Any) -> str | None:
    """Name of a trial, which is also the name of its folder; None outside of a search that names none."""
    if host.hp_search_backend is not None:
        return Path(host._get_output_dir(trial)).name
    return None if host.hp_name is None or trial is None else host.hp_name(trial)


def folder_of(host: SearchHooks, trial: Any) -> Path:
    """Folder of a trial.

    Raises:
        UsageError: ``hp_name`` gave something that is no name of a folder.
    """
    output_dir = str(host.args.output_dir)
    folder = Path(host._get_output_dir(trial))
    if os.path.normpath(folder.parent) != os.path.normpath(output_dir) or folder.name in ("", ".", ".."):
        raise UsageError(
            f"hp_name gave {str(folder.relative_to(output_dir))!r}; expected the name of a folder, a "
            "different one for each trial."
        )
    return folder


def train_trial(host: SearchHooks, trial: Any, checkpoint: str | None) -> Any:
    """Train and score one trial; returns its objective, that of the last evaluation."""
    host.objective = None
    host.train(resume_from_checkpoint=checkpoint, trial=trial)
    if host.objective is None and checkpoint is not None:
        # The trial was cut off behind its last evaluation, which is in the checkpoint's history.
        metrics = _last_evaluation(host.state)
        host.objective = host.compute_objective(metrics) if metrics and host.compute_objective else None
    if host.objective is None:
        assert host.compute_objective is not None
        host.objective = host.compute_objective(host.evaluate())
    return host.objective


def numbers(objective: Any, count: int) -> list[float]:
    """An objective as `count` finite numbers, one for each direction.

    Raises:
        UsageError: that is not what ``compute_objective`` gave.
    """
    several = isinstance(objective, Sequence) and not isinstance(objective, str)
    try:
        values = [float(each) for each in (objective if several else [objective])]
    except (TypeError, ValueError):
        values = []
    if len(values) != count or not all(math.isfinite(value) for value in values):
        raise UsageError(f"compute_objective gave {objective!r}; expected {count} finite number(s), one per direction.")
    return values


def _last_evaluation(state: TrainerState) -> dict[str, float]:
    lines = [line for line in state.log_history if any(name.startswith("eval_") for name in line)]
    merged: dict[str, float] = {}
    for line in lines:  # one line for each of several data sets
        if line["step"] == lines[-1]["step"]:
            merged.update({name: value for name, value in line.items() if name != "step"})
    return merged


def release(host: SearchHooks) -> None:
    """Let go of everything that a trial made, so that memory is back to where it was before it."""
    host.model = host.model_wrapped = None  # type: ignore[assignment]
    host.optimizer = host.lr_scheduler = host.feed = host._tr_loss = None
    vars(host).pop("_gradients", None)  # lists the model's parameters
    handler = host.callback_handler
    handler.model = handler.optimizer = handler.lr_scheduler = None
    handler.train_dataloader = handler.eval_dataloader = None
    host.accelerator.free_memory()  # collects garbage, too


class CallbackStates:
    """The states of callbacks when a search began: each trial starts with them, not with those of the one before.

    Without it, an `EarlyStoppingCallback` that lost its patience in one trial would stop all later ones.
    """

    def __init__(self, host: SearchHooks) -> None:
        self._states = [
            (callback, copy.deepcopy(callback.state().get("attributes", {})))
            for callback in exportable(host.callback_handler.callbacks)
        ]

    def restore(self) -> None:
        """Set the attributes back."""
        for callback, attributes in self._states:
            for name, value in attributes.items():
                setattr(callback, name, copy.deepcopy(value))


def twin_of(host: SearchHooks) -> SearchHooks:
    """A trainer for another thread: the same parts, with arguments, callbacks and progress of its own."""
    twin = copy.copy(host)
    twin.args = copy.copy(host.args)
    handler = host.callback_handler
    callbacks = [copy.copy(callback) for callback in handler.callbacks]
    twin.callback_handler = CallbackHandler(callbacks, None, handler.processing_class, None, None)
    twin.control, twin.state, twin.meters = TrainerControl(), TrainerState(), Meters()
    twin.state.is_world_process_zero = twin.state.is_local_process_zero = True
    twin._eval_dataloaders = {}
    twin.__dict__.pop("_desk_or_none", None)
    return twin
