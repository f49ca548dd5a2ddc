"""What the loop itself hands to a checkpoint, and takes back when a run goes on."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from onward import engine
from onward.arguments import option
from onward.checkpoint import read_record
from onward.cursor import Cursor
from onward.loop.resuming import locate_best
from onward.loop.step import settle_input_tokens
from onward.state import TrainerState
from onward.types import StepFigures

if TYPE_CHECKING:
    from onward.hooks.base import TrainerBase

logger = logging.getLogger(__name__)

_UNIMPORTANT = frozenset({"output_dir", "run_name", "resume_from_checkpoint", "local_rank", "disable_tqdm"})
"""Arguments that a resumed run may have otherwise without a word, beside those of pushes to the Hub."""
_OF_PUSHES = ("hub_", "push_")


def record_of_loop(host: TrainerBase) -> dict[str, Any]:
    """What this rank's part of the loop needs beside the files of transformers; JSON-able."""
    settle_input_tokens(host)
    return {
        "open_loss": 0.0 if host._tr_loss is None else host._tr_loss.item(),
        "total_loss": host._total_loss_scalar,
        "last_logged": host._globalstep_last_logged,
        "due": host._due_after_resume,
        "evaluated_at_start": host._evaluated_at_start,
        "stopped_before": host.state.max_steps if host.control.should_training_stop else None,
        "figures": [_number(value) for value in host._step_figures],
        "feed": None if host.feed is None else host.feed.state_dict(),
        "compilation": None if host._compilation is None else host._compilation.state_dict(),
        "arguments": {k: str(v) for k, v in host.args.to_sanitized_dict().items()},
    }


def _number(value: Any) -> float | None:
    return value.item() if torch.is_tensor(value) else value


def restore_run(host: TrainerBase, checkpoint: str) -> bool:
    """Place state, cursor, meters, callbacks and data where the checkpoint stands.

    Returns:
        Whether a callback had ended the run there.

    Raises:
        CheckpointMismatch: the data order would not be that of the run that wrote it.
    """
    host.state = _read_state(host, checkpoint)
    host._load_callback_state()
    record = read_record(checkpoint)
    host.cursor = _place(host, None if record is None else record.cursor)
    if record is None:
        host._globalstep_last_logged = host.state.global_step
        logger.warning(
            "%s was not written by onward: the data goes on at the right sample, but what a data set drew, and the "
            "mean "
            "loss of the steps before, are not in it.",
            checkpoint,
        )
        return False
    mine = record.of_rank(host.args.process_index)
    host.meters.load_state_dict(mine.get("meters", {}))
    extra = mine.get("extra", {})
    _restore_loop(host, extra)
    return _was_ended(host, extra.get("stopped_before"))


def return_to(host: TrainerBase, checkpoint: str, trial: Any) -> None:
    """Go back to a checkpoint of this run in everything but the data, in the middle of the run."""
    now = host.state
    counted = host.meters.state_dict(engine.sums_over_processes(host.accelerator))
    host._load_from_checkpoint(checkpoint)
    host._load_optimizer_and_scheduler(checkpoint)
    host._load_scaler(checkpoint)
    host.state = _read_state(host, checkpoint)
    for name in _OF_THIS_CALL:
        setattr(host.state, name, getattr(now, name))
    host._retune(checkpoint)
    host._load_callback_state()
    record = read_record(checkpoint)
    mine = {} if record is None else record.of_rank(host.args.process_index)
    extra, before = mine.get("extra", {}), mine.get("meters", {})
    kept = {name: counted[name] for name in _GO_ON}
    host.meters.load_state_dict({**before, **kept, "nonfinite_in_a_row": 0, "longest_row": 0, "unjudged": []})
    host.meters.start()
    assert host._tr_loss is not None
    host._tr_loss.fill_(extra.get("open_loss", 0.0))
    host._total_loss_scalar = extra.get("total_loss", 0.0)
    host._globalstep_last_logged = extra.get("last_logged", host.state.global_step)
    host._saved_step = host.state.global_step
    host._open_tokens, host.current_flos = 0, 0
    for request in ("training_stop", "epoch_stop", "save", "evaluate", "log"):  # of the step that is taken back
        setattr(host.control, f"should_{request}", False)
    host._load_rng_state(checkpoint)


_GO_ON = (
    "nonfinite_steps", "nonfinite_positions", "rollbacks", "data_lead",
    "samples", "tokens", "pads", "data_wait", "train_seconds",
)  # fmt: skip
"""What a rollback does not undo: it happened."""
_OF_THIS_CALL = (
    "is_local_process_zero", "is_world_process_zero", "max_steps", "num_train_epochs", "train_batch_size",
    "is_hyper_param_search", "trial_name", "trial_params",
)  # fmt: skip


def _was_ended(host: TrainerBase, planned: int | None) -> bool:
    """Whether the run was ended before its planned length, and the plan is still the same."""
    if planned is None or host.plan is None or planned != host.plan.max_steps:
        return False
    if host.state.global_step < planned:
        logger.warning(
            "This run was ended at step %d of %d (by early stopping, say), so there is nothing left to train. "
            "To train on, resume from an earlier checkpoint or change its length.",
            host.state.global_step,
            planned,
        )
    return True


def _read_state(host: TrainerBase, checkpoint: str) -> TrainerState:
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    recorded = state.best_model_checkpoint
    if recorded is not None:
        best = locate_best(recorded, host._get_output_dir(trial=host._trial))
        state.best_model_checkpoint = None if best is None else str(best)
        if best is None:
            logger.warning("The best checkpoint so far, %s, does not exist anymore.", recorded)
    state.compute_steps(host.args, host.plan.max_steps if host.plan else 0)
    return state


def _place(host: TrainerBase, recorded: dict[str, Any] | None) -> Cursor:
    now, plan = host.cursor, host.plan
    assert now is not None
    assert plan is not None
    if recorded is not None:
        cursor = Cursor.from_dict(recorded).resume(
            now, allow_mismatch=option(host.args, "allow_resume_mismatch") or host.args.ignore_data_skip
        )
    else:
        cursor = replace(
            now,
            epoch=host.state.global_step // plan.steps_per_epoch,
            step=host.state.global_step % plan.steps_per_epoch,
        )
    return replace(cursor, step=0) if host.args.ignore_data_skip and not cursor.epoch_ended else cursor


def _restore_loop(host: TrainerBase, extra: dict[str, Any]) -> None:
    if not extra:
        return
    host._tr_loss = torch.tensor(extra["open_loss"], device=host.args.device)
    host._total_loss_scalar = extra["total_loss"]
    host._globalstep_last_logged = extra["last_logged"]
    host._due_after_resume = extra["due"]
    host._evaluated_at_start = extra.get("evaluated_at_start", False)
    host._step_figures = StepFigures(*extra["figures"])
    if extra["feed"] is not None and host.feed is not None and not host.args.ignore_data_skip:
        host.feed.load_state_dict(extra["feed"], allow_mismatch=bool(option(host.args, "allow_resume_mismatch")))
    if host._compilation is not None:
        host._compilation.load_state_dict(extra.get("compilation"))
    _tell_changes(extra["arguments"], {k: str(v) for k, v in host.args.to_sanitized_dict().items()})


def _tell_changes(before: dict[str, str], now: dict[str, str]) -> None:
    changed = [
        f"  {name}: {before.get(name, 'unset')} → {now.get(name, 'unset')}"
        for name in sorted({*before, *now} - _UNIMPORTANT)
        if before.get(name) != now.get(name) and not name.startswith(_OF_PUSHES)
    ]
    if changed:
        logger.warning("Resuming with other arguments than the checkpoint was made with:\n%s", "\n".join(changed))
