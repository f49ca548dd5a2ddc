"""Leaving a run early, so that it can go on exactly from there."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from onward.arguments import option
from onward.checkpoint import parts
from onward.errors import Preempted, UnknownMetric
from onward.leaving import Leaving, parse_signals
from onward.loop.undo import Start
from onward.state import TrainerState, exportable

if TYPE_CHECKING:
    from onward.hooks.base import TrainerBase

logger = logging.getLogger(__name__)


class EvaluationLeft(Exception):
    """An evaluation was given up, because the run has to end. It is made up for after a resume."""


def watch(host: TrainerBase) -> Leaving:
    """What notices signals and the time limit while this run trains."""
    limit = option(host.args, "max_train_seconds")
    return Leaving(parse_signals(option(host.args, "preemption_signals")), limit)


def leave_if_asked(host: TrainerBase, model: Any, trial: Any) -> None:
    """At a step boundary: save and leave, if a signal or the time limit asks for it.

    Raises:
        Preempted: the run is saved; its exit code is `preemption_exit_code`.
        KeyboardInterrupt: the same, after Ctrl-C.
    """
    if host._leaving is not None and host._leaving.due():
        save_and_leave(host, model, trial)


def leave_inside(host: TrainerBase, model: Any, trial: Any, is_first: bool) -> Callable[[], None] | None:
    """At the start of a step of several micro-batches: a function to be called between them.

    It takes the step back to this start and leaves, if a signal or the time limit asks for it.

    Args:
        host: the trainer.
        model: the model as it is called.
        trial: of a search.
        is_first: whether the step is the first one of its epoch, which a resume enters before the order is drawn.

    Returns:
        None where the samples of the step cannot be had again (a stream): then the step is finished first.
    """
    leaving, feed = host._leaving, host.feed
    if leaving is None or feed is None or not feed.has_index:
        return None
    start = Start(host, feed.rewind_to_epoch if is_first else None)

    def leave() -> None:
        if leaving.due():
            start.undo(host, model)
            save_and_leave(host, model, trial)

    return leave


def leave_evaluation_if_asked(host: TrainerBase) -> None:
    """Behind an evaluation batch: give the evaluation up, if a signal or the time limit asks for it.

    Only one that the loop itself began, and makes up for after a resume: a callback's ends before the run does.
    """
    if host._may_leave_evaluation and host._leaving is not None and host._leaving.due():
        raise EvaluationLeft


def evaluate_or_leave(host: TrainerBase, model: Any, trial: Any, ignore_keys: list[str] | None) -> bool:
    """Evaluate, and return whether the watched metric is the best so far.

    If the run has to end meanwhile, or the metric is not there, save as things stood before, with the evaluation still
    due: a metric's name can be put right without training again.
    """
    standing = _Standing(host)
    try:
        with _may_be_left(host):
            metrics = host._evaluate(trial, ignore_keys)
        return host._determine_best_metric(metrics=metrics, trial=trial)
    except (EvaluationLeft, UnknownMetric) as ending:
        standing.put_back(host)
        host._due_after_resume = {"evaluate": True, "save": bool(host.control.should_save)}
        if isinstance(ending, UnknownMetric):
            save(host, model, trial)
            raise
        save_and_leave(host, model, trial)
        raise AssertionError("save_and_leave does not return") from None


def evaluate_at_start(host: TrainerBase, model: Any, trial: Any, ignore_keys: list[str] | None) -> None:
    """Evaluate before the first step. If the run has to end meanwhile, a resume, which is at the start too, does it."""
    standing = _Standing(host)
    try:
        with _may_be_left(host):
            host._evaluate(trial, ignore_keys, skip_scheduler=True)
    except EvaluationLeft:
        standing.put_back(host)
        save_and_leave(host, model, trial)


@contextmanager
def _may_be_left(host: TrainerBase) -> Iterator[None]:
    host._may_leave_evaluation = True
    try:
        yield
    finally:
        host._may_leave_evaluation = False


class _Standing:
    """What an evaluation that is given up must not have changed: of several sets, some may have been told already."""

    def __init__(self, host: TrainerBase) -> None:
        self._generators = parts.rng_states(distributed=False)
        self._logged = len(host.state.log_history)
        states = TrainerState(stateful_callbacks=exportable(host.callback_handler.callbacks)).stateful_callbacks
        self._callbacks = copy.deepcopy(states)
        self._stops = host.control.should_epoch_stop, host.control.should_training_stop

    def put_back(self, host: TrainerBase) -> None:
        """Make all as it was."""
        parts.restore_rng_states(self._generators)
        del host.state.log_history[self._logged :]
        host.state.stateful_callbacks.update(self._callbacks)
        host._load_callback_state()
        host.control.should_epoch_stop, host.control.should_training_stop = self._stops


def save_and_leave(host: TrainerBase, model: Any, trial: Any) -> None:
    """Save unless this step is saved already, wait until it is on disk, and leave.

    A save that fails is tried once more: there is no later step that would.
    """
    leaving, step = host._leaving, host.state.global_step
    assert leaving is not None
    host._flush_saves()  # this step's own save may be in flight yet, and fail
    due = host._due_after_resume
    for _ in range(2):
        if host._saved_step == step and not due and not host._save_failed():
            break
        save(host, model, trial)
        host._flush_saves()
        due = None
    logger.warning("Left at step %d, because %s. %s", step, leaving.reason, _what_is_saved(host))
    if leaving.interrupted:
        raise KeyboardInterrupt
    raise Preempted(option(host.args, "preemption_exit_code"))


def _what_is_saved(host: TrainerBase) -> str:
    if host._save_failed():
        return "This step could NOT be saved; resume_from_checkpoint=True goes on from the last good checkpoint."
    return "The run is saved; go on with trainer.train(resume_from_checkpoint=True)."


def finish_saving(host: TrainerBase, model: Any, trial: Any) -> None:
    """At the end of training: wait until the last save is on disk; one that failed is tried once more, with the end."""
    host._flush_saves()
    if host._save_failed():
        save(host, model, trial)
        host._flush_saves()
    assert host._leaving is not None
    host._leaving.max_seconds = None  # the run is complete, in time
    for _ in range(2):  # a signal that came meanwhile; several processes know at the second boundary
        host._leave_if_asked(model, trial)


def save(host: TrainerBase, model: Any, trial: Any) -> None:
    """Save a checkpoint and tell the callbacks."""
    began = time.monotonic()
    host._save_checkpoint(model, trial)
    if not host._save_just_failed():
        host._saved_step = host.state.global_step
        host.control = host.callback_handler.on_save(host.args, host.state, host.control)
    if host._leaving is not None:
        host._leaving.save_seconds = time.monotonic() - began
