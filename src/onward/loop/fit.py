"""The training loop.

    on_train_begin
    for each epoch:
        on_epoch_begin
        for each step (a list of micro-batches):
            on_step_begin
            for each micro-batch:
                training_step                                   forward, loss, backward
                on_substep_end                                  (not behind the last one)
            clip
            on_pre_optimizer_step
            optimizer step
            on_optimizer_step
            schedule; zero the gradients; advance the cursor
            on_step_end
            log → on_log, evaluate → on_evaluate, save → on_save    what `control` asks for
        on_epoch_end
        log, evaluate, save

Hooks do the work, events let others watch and ask, and this file says only in which order. It knows neither torch
nor accelerate, so a host of thirty lines can test it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onward.types import StepFigures

if TYPE_CHECKING:
    from onward.data.feed import Feed
    from onward.hooks.base import TrainerBase
    from onward.loop.shrink import Fitting
    from onward.loop.undo import Buffers
    from onward.plan import RunPlan

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """What one call of `train` works with."""

    plan: RunPlan
    feed: Feed
    model: Any
    """The model as it is called: wrapped for several processes, precision or compilation."""
    trial: Any = None
    ignore_keys: list[str] | None = None
    start_time: float = 0.0
    restore_rng: Callable[[], None] | None = None
    """Puts the random number generators where they stood; to be called before the next step, once."""
    is_over: bool = False
    """Whether there is no step left: a callback had ended this run when it was saved, or it was saved at its end."""
    gave_up: bool = False
    """Whether a callback ended the epoch between two micro-batches, whose gradients are still there."""
    fitting: Fitting | None = None
    """Keeps micro-batches small enough for the memory, where `auto_find_batch_size` asks for it."""
    buffers: Buffers | None = None
    """What forward changes in the model and a step that is taken back must not leave behind."""
    search: Callable[[], None] | None = None
    """Looks for the largest micro-batch that fits, before the first step."""
    check_states: Callable[[], None] | None = None
    """Sees that checkpoints can be read again; to be called behind a step, once."""


@dataclass
class Work:
    """What one step trains on."""

    samples: list[Any]
    """Its micro-batches."""
    num_items: Any
    """Label items in all of them, or `None`."""
    weights: list[float]
    """What the mean loss of each micro-batch counts for, beside the others."""
    batches: int
    """How many micro-batches of the plan that is; `samples` are more where these were cut."""
    chances: int = 0
    """After how many of `samples` `leave` is called: as often on every process."""
    leave: Callable[[], None] | None = None
    """To be called between micro-batches: takes the step back and leaves, if the run has to end early."""


def fit(host: TrainerBase, run: Run) -> None:
    """Train from where `host.cursor` stands to the end of the plan."""
    host.control = host.callback_handler.on_train_begin(host.args, host.state, host.control)
    if run.search is not None:
        run.search()
    if host.args.eval_on_start and host.state.global_step == 0 and not host._evaluated_at_start:
        _restore_rng(host, run)
        host._evaluate_at_start(run.model, run.trial, run.ignore_keys)
        host._evaluated_at_start = True
    if run.is_over or host.state.global_step >= run.plan.max_steps:
        run.is_over = host.control.should_training_stop = True  # at most the end of an epoch is still due
    _make_up(host, run)
    assert host.cursor is not None, "the run is opened before it is fitted"
    if run.is_over and host.cursor.epoch_ended:
        _restore_rng(host, run)
        return
    epoch = _first_epoch(host)
    # A rollback leaves data behind, not steps: the run may need the begin of one more epoch.
    while epoch < run.plan.num_epochs or (host.meters.data_lead and host.state.global_step < run.plan.max_steps):
        fit_epoch(host, run, epoch)
        epoch += 1
        if host.control.should_training_stop:
            break


def _first_epoch(host: TrainerBase) -> int:
    cursor = host.cursor
    assert cursor is not None
    return cursor.epoch + 1 if cursor.epoch_ended else cursor.epoch


def _make_up(host: TrainerBase, run: Run) -> None:
    """Do what was still due at the step where the run had to leave."""
    due, host._due_after_resume = host._due_after_resume, None
    if due:
        _restore_rng(host, run)
        host.control.should_evaluate, host.control.should_save = due["evaluate"], due["save"]
        _log_evaluate_save(host, run, _first_epoch(host))
        run.restore_rng = host._hold_rng()  # entering the epoch draws from the generators


def fit_epoch(host: TrainerBase, run: Run, epoch: int) -> None:
    """Train for one epoch, or for what is left of it."""
    cursor = host.cursor
    assert cursor is not None
    first = cursor.step if cursor.epoch == epoch else 0
    if run.gave_up:  # no checkpoint could bring the gradients back for the next step
        run.gave_up = False
        host._clear_gradients(run.model)
    if not first:
        host._step_figures = StepFigures()
    host.control = host.callback_handler.on_epoch_begin(host.args, host.state, host.control)
    if not first:
        _restore_rng(host, run)  # before samplers draw the order of this epoch
    batches = run.feed.epoch(epoch, skip=first * run.plan.accumulation)
    step = first
    # Who asks for the end before the first step ends the run behind it, or behind its first micro-batch.
    while step < _steps_in_epoch(host, run) and not run.is_over and update(host, run, batches, (epoch, step)):
        step += 1
        if _stops(host):
            break
    if step == 0 and not _stops(host):
        logger.warning(
            "The training data gave no batch in epoch %d, so training stops at step %d of %d. "
            "A stream ends like this when it has fewer samples than max_steps needs and cannot be read twice.",
            epoch, host.state.global_step, run.plan.max_steps,
        )  # fmt: skip
        host.control.should_training_stop = True
    _restore_rng(host, run)  # the checkpoint stood at the very end of the epoch
    host.control = host.callback_handler.on_epoch_end(host.args, host.state, host.control)
    assert host.cursor is not None
    host.cursor = host.cursor.advance(epoch, step).end_epoch()
    _log_evaluate_save(host, run, epoch)
    if host._rollback_due is not None:  # found in the log line of the epoch
        host._roll_back(run.trial)
    host._leave_if_asked(run.model, run.trial)


def _steps_in_epoch(host: TrainerBase, run: Run) -> int:
    """Steps of an epoch; of a stream, which ends by itself, as many as the run can still take."""
    lead = 0 if run.plan.has_length else host.meters.data_lead
    return run.plan.steps_per_epoch + lead


def update(host: TrainerBase, run: Run, batches: Iterator[Any], place: tuple[int, int]) -> bool:
    """Take one optimizer step.

    Args:
        host: the trainer.
        run: what the run works with.
        batches: the epoch's micro-batches.
        place: epoch, and number of the step in it.

    Returns:
        Whether there was data for it.
    """
    epoch, step = place
    host._data_step = 1 + _steps_before(host, run, place)
    with host.meters.waiting():
        work = _pull(host, run, batches, run.plan.batches_in_step(step))
    if not work.samples:
        return False
    _restore_rng(host, run)
    if work.chances:
        work.leave = host._leave_inside_step(run.model, run.trial, is_first=step == 0)
    host.current_gradient_accumulation_steps = len(work.samples)
    host.control = host.callback_handler.on_step_begin(host.args, host.state, host.control)
    if run.buffers is not None:
        run.buffers.keep()
    if not (take(host, run, work) if run.fitting is None else run.fitting.take(host, run, work)):
        return True
    if run.check_states is not None:
        run.check_states()
        run.check_states = None

    state = host.state
    state.global_step += 1
    consumed = step * run.plan.accumulation + work.batches
    state.epoch = epoch + consumed / run.plan.batches_per_epoch
    assert host.cursor is not None
    host.cursor = host.cursor.advance(epoch, step + 1)
    host.control = host.callback_handler.on_step_end(host.args, state, host.control)
    if host._rollback_due is None:
        _log_evaluate_save(host, run, epoch)
    if host._rollback_due is not None:  # an accelerator is asked for what was not finite at log lines only
        host._roll_back(run.trial)
    host._leave_if_asked(run.model, run.trial)
    return True


def _steps_before(host: TrainerBase, run: Run, place: tuple[int, int]) -> int:
    """How many steps the data has before a place in it."""
    if run.plan.has_length:
        return place[0] * run.plan.steps_per_epoch + place[1]
    return host.state.global_step + host.meters.data_lead  # nobody knows how many a pass through a stream has


def _pull(host: TrainerBase, run: Run, batches: Iterator[Any], count: int) -> Work:
    if run.fitting is not None:
        return run.fitting.pull(host, run, batches, count)
    samples, num_items = host.get_batch_samples(batches, count, host.args.device)
    return Work(samples, num_items, run.feed.weights(len(samples)), len(samples), chances=len(samples) - 1)


def take(host: TrainerBase, run: Run, work: Work) -> bool:
    """Take a step: forward and backward, then the optimizer.

    Returns:
        False if a callback asked in between to stop.
    """
    if not accumulate(host, run, work):
        return False
    apply_gradients(host, run)
    return True


def accumulate(host: TrainerBase, run: Run, work: Work) -> bool:
    """Run every micro-batch of a step forward and backward.

    Returns:
        False if a callback asked in between to stop.
    """
    last = len(work.samples) - 1
    for number, inputs in enumerate(work.samples):
        host._micro_batch, host._micro_batch_weight = number, work.weights[number]
        with host._gradient_sync(run.model, is_last=number == last):
            loss = host.training_step(run.model, inputs, work.num_items)
        host._count_micro_batch(loss, inputs)
        if number != last:
            host.control = host.callback_handler.on_substep_end(host.args, host.state, host.control)
            if _stops(host):
                run.gave_up = True
                return False
            if work.leave is not None and number < work.chances:
                work.leave()
    return True


def apply_gradients(host: TrainerBase, run: Run) -> None:
    """Clip, step the optimizer and the schedule, and clear the gradients."""
    grad_norm = clip(host, run)
    host.control = host.callback_handler.on_pre_optimizer_step(host.args, host.state, host.control)
    host._step_optimizer(grad_norm)
    end_step(host, run, grad_norm)


def clip(host: TrainerBase, run: Run) -> Any:
    """Clip the gradient; returns the norm that it had."""
    limit = host.args.max_grad_norm
    clipped = host._clip_grad_norm(run.model) if limit is not None and limit > 0 else None
    return host._get_grad_norm(run.model, grad_norm=clipped)


def end_step(host: TrainerBase, run: Run, grad_norm: Any) -> None:
    """Behind the optimizer step: advance the schedule and clear the gradients."""
    host.control = host.callback_handler.on_optimizer_step(host.args, host.state, host.control)
    # The learning rate is the one that this step was taken with.
    host._step_figures = StepFigures(grad_norm, host._get_learning_rate())
    host._step_scheduler()
    host._clear_gradients(run.model)


def _stops(host: TrainerBase) -> bool:
    return host.control.should_epoch_stop or host.control.should_training_stop


def _restore_rng(host: TrainerBase, run: Run) -> None:
    if run.restore_rng is not None:
        run.restore_rng()
        run.restore_rng = None


def _log_evaluate_save(host: TrainerBase, run: Run, epoch: int) -> None:
    figures = host._step_figures
    host._maybe_log_save_evaluate(
        host._tr_loss,
        figures.grad_norm,
        run.model,
        run.trial,
        epoch,
        run.ignore_keys,
        run.start_time,
        learning_rate=figures.learning_rate,
    )
