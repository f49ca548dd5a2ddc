"""How a checkpoint is saved.

    settle the save before it (wait, count failures, push what was committed)
    collect what every rank knows (random numbers, meters)
    either  through the hooks, at once:   save_model → _save, _save_optimizer_and_scheduler, _save_scaler, …
    or      beside the loop:              copy the state to host memory, hand it to the writer
    both    into a staging folder, then:  trainer_state.json, onward_state.json, manifest, rename; rotate

The second way is taken when nobody could tell the difference: no subclass overrides one of these hooks, no callback
listens to `on_save`, the model is of a kind whose copy can be saved, and host memory suffices. Rank 0 writes; every
failure of a rank reaches all.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward import engine
from onward.arguments import option
from onward.checkpoint import layout, parts, ranks
from onward.checkpoint.failures import is_storage_failure
from onward.checkpoint.record import RunRecord
from onward.checkpoint.staging import Staging
from onward.errors import SaveFailed
from onward.loop.beside import SaveJob, hand_over, rotate
from onward.loop.listening import calls_are_intercepted, hooks_are_overridden, saves_are_listened_to

if TYPE_CHECKING:
    from onward.hooks.checkpointing import CheckpointHooks

logger = logging.getLogger(__name__)


def save_checkpoint(host: CheckpointHooks, trial: Any) -> None:
    """Save a checkpoint of the step that the run stands at.

    Raises:
        SaveFailed: this was one failed save too many in a row.
    """
    host._desk().just_failed = False
    settle_saves(host)
    if host.hp_search_backend is None and trial is None:
        host.store_flos()
    job = _open_job(host, trial)
    desk = host._desk()
    if ranks.from_first(_wants_writer(host)) and hand_over(host, job):
        return
    error = _save_through_hooks(host, job)
    if error is not None:
        desk.just_failed = True
        host.control.should_save = False  # there is no on_save that does it, and the next save is the retry
        _count_failure(host, str(job.target), error)
        return
    desk.failures_in_a_row = 0
    desk.committed.append(job.target)
    desk.newest = job.target
    if host.args.push_to_hub:
        host._push_from_checkpoint(str(job.target))
    if host.args.should_save:
        rotate(job.record.run, job.target, job.limit, job.best)


def settle_saves(host: CheckpointHooks) -> None:
    """Wait for the save in flight and act on how it ended; all ranks must call it.

    Raises:
        SaveFailed: it was one failed save too many in a row.
    """
    desk = host._desk()
    desk.writer.wait()
    _take_outcomes(host)
    committed, desk.unsettled = desk.unsettled, 0
    failed, desk.failed = desk.failed, []
    outcomes = ranks.everyone((committed, [(target, _portable(error)) for target, error in failed]))
    if any(count for count, _ in outcomes):
        desk.failures_in_a_row = 0
    elsewhere = next((failures for _, failures in outcomes if failures), [])
    for target, error in failed or elsewhere:
        _count_failure(host, target, error)


def hand_over_committed(host: CheckpointHooks) -> None:
    """Hand checkpoints that were committed meanwhile to the Hub; waits for nothing."""
    _take_outcomes(host)


def committed_saves(host: CheckpointHooks) -> list[Path]:
    """Return the checkpoints that were committed since the last call, having handed them to the Hub; waits for nothing.

    Failures met on the way are acted on by the next `settle_saves`, in which all ranks take part.
    """
    desk = host._desk()
    _take_outcomes(host)
    committed = list(desk.committed)
    desk.committed.clear()
    return committed


def _take_outcomes(host: CheckpointHooks) -> None:
    """Sort out the saves that ended beside the loop, and hand the committed ones to the Hub."""
    desk = host._desk()
    for outcome in desk.writer.take_outcomes():
        if outcome.error is not None:
            desk.failed.append((str(outcome.target), outcome.error))
            continue
        desk.unsettled += 1
        desk.committed.append(outcome.target)
        desk.newest = outcome.target
        if host.args.push_to_hub:
            host._push_from_checkpoint(str(outcome.target))


def _open_job(host: CheckpointHooks, trial: Any) -> SaveJob:
    state = host.state
    run_dir = host._get_output_dir(trial=trial)
    target = os.path.join(run_dir, layout.name_of(state.global_step))
    host._desk().best_before[target] = state.best_model_checkpoint
    _note_best(host, run_dir, target)
    _note_callbacks(host)
    rng = {} if host.args.save_only_model else parts.rng_states(distributed=host.args.world_size > 1)
    meters = host.meters.state_dict(engine.sums_over_processes(host.accelerator))
    mine = {"meters": meters, "extra": host._extra_record()}
    gathered = ranks.everyone((rng, mine))
    record = RunRecord(
        run=host._desk().run,
        step=state.global_step,
        world_size=host.args.world_size,
        cursor=None if host.cursor is None else host.cursor.to_dict(),
        ranks=[each[1] for each in gathered],
    )
    best = None if state.best_model_checkpoint is None else Path(state.best_model_checkpoint)
    return SaveJob(Path(target), record, [each[0] for each in gathered], host.args.save_total_limit, best)


def _note_best(host: CheckpointHooks, run_dir: str, target: str) -> None:
    state = host.state
    strategy = getattr(host.args.save_strategy, "value", host.args.save_strategy)
    if strategy not in ("steps", "epoch", "best") or not state.best_global_step:
        return
    best = os.path.join(run_dir, layout.name_of(state.best_global_step))
    if best == target or os.path.exists(best):
        state.best_model_checkpoint = best


def _note_callbacks(host: CheckpointHooks) -> None:
    from onward.state import TrainerState, check_exported, exportable

    things = exportable([*host.callback_handler.callbacks, host.control])
    for each in things:
        check_exported(each)
    states = TrainerState(stateful_callbacks=things)
    host.state.stateful_callbacks.update(states.stateful_callbacks)


def _wants_writer(host: CheckpointHooks) -> bool:
    if not option(host.args, "async_save"):
        return False
    desk = host._desk()
    reason = None
    if names := hooks_are_overridden(host):
        reason = f"{type(host).__name__} overrides {', '.join(names)}"
    elif names := saves_are_listened_to(host.callback_handler.callbacks):
        reason = f"{', '.join(names)} listens to on_save"
    elif calls_are_intercepted(host.callback_handler):
        reason = "events are intercepted"
    if reason is not None and reason != desk.told_why:
        desk.told_why = reason
        logger.info("Checkpoints are saved synchronously: %s.", reason)
    return reason is None


# --- through the hooks ----------------------------------------------------------------------------------------------


def _save_through_hooks(host: CheckpointHooks, job: SaveJob) -> Exception | None:
    """Save at once; return the storage's failure, if any, the same on all ranks."""
    writes = host.args.should_save
    staging, error = _attempt(lambda: Staging.create(job.target) if ranks.rank() == 0 else None)
    path = ranks.from_first(None if staging is None else str(staging.path))
    if path is None:
        return _agree(error)
    try:
        if staging is None and writes:  # the writing process of another machine, with save_on_each_node
            staging, error = _attempt(lambda: Staging.at(Path(path), job.target))
        error = _agree(error)
        for write in _writes_through_hooks(host, job, path):
            if error is None:
                # After each of them: the processes put the parts of a sharded model together, and where one has failed
                # the others must not wait for it in the next.
                _, error = _attempt(write)
                error = _agree(error)
        if error is None:
            if staging is not None:
                _, error = _attempt(partial(staging.commit, job.record.run, job.record.step))
            error = _agree(error)
    finally:
        # A rank that does not save wrote its random numbers; without a shared folder they are in a folder of its own.
        shutil.rmtree(Path(path).parent, ignore_errors=True)
    return error


def _writes_through_hooks(host: CheckpointHooks, job: SaveJob, folder: str) -> list[Callable[[], None]]:
    return [
        partial(host.save_model, folder, _internal_call=True),
        *([] if host.args.save_only_model else [partial(host._save_optimizer_and_scheduler, folder)]),
        partial(_write_the_rest, host, job, folder),
    ]


def _write_the_rest(host: CheckpointHooks, job: SaveJob, folder: str) -> None:
    if not host.args.save_only_model:
        host._save_scaler(folder)
        host._save_rng_state(folder)
    if host.args.should_save:
        host.state.save_to_json(os.path.join(folder, layout.TRAINER_STATE))
        job.record.write(Path(folder))


def _attempt(action: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return action(), None
    except Exception as error:  # the other ranks must hear of it before it is raised
        return None, error


def _agree(error: Exception | None) -> Exception | None:
    """Return the first failure of any rank; raise what is no failure of the storage, on every rank."""
    if error is not None and not is_storage_failure(error):
        ranks.everyone(_portable(error))
        raise error
    errors = [each for each in ranks.everyone(None if error is None else _portable(error)) if each is not None]
    for each in errors:
        if not is_storage_failure(each):
            raise SaveFailed(f"Saving a checkpoint failed on another rank: {each}") from each
    return error if error is not None else next(iter(errors), None)


def _portable(error: Exception) -> Exception:
    """Return an error of a class that every rank can unpickle."""
    text = f"{type(error).__name__}: {error}"
    return OSError(text) if is_storage_failure(error) else SaveFailed(text)


# --- at the end


def rotate_at_the_end(host: CheckpointHooks) -> None:
    """Rotate once more: a run may have been killed before it could, and a run that keeps one keeps the best."""
    limit, best, newest = host.args.save_total_limit, host.state.best_model_checkpoint, host._desk().newest
    folder = Path(host._get_output_dir(trial=host._trial))
    if not host.args.should_save or newest is None or newest.parent.resolve() != folder.resolve():
        return
    if limit == 1 and best is not None and Path(best).is_dir():
        newest = Path(best)
    rotate(host._desk().run, newest, limit, None if best is None else Path(best))


# --- afterwards -----------------------------------------------------------------------------------------------------


def _count_failure(host: CheckpointHooks, target: str, error: Exception) -> None:
    desk = host._desk()
    if host.state.best_model_checkpoint == target:
        host.state.best_model_checkpoint = desk.best_before.get(target)
    if not is_storage_failure(error):
        raise error
    desk.failures_in_a_row += 1
    allowed = option(host.args, "max_failed_saves")
    if desk.failures_in_a_row >= allowed:
        raise SaveFailed(
            f"{desk.failures_in_a_row} checkpoints in a row could not be saved (max_failed_saves={allowed}); the last: "
            f"{target}: {error}. Free space or mend permissions, then resume with resume_from_checkpoint=True."
        ) from error
    logger.error(
        "The checkpoint %s could not be saved (%s). The last good one is untouched, training goes on and the next save "
        "tries again; failure %d in a row, %d end the training (max_failed_saves).",
        target, error, desk.failures_in_a_row, allowed,
    )  # fmt: skip
