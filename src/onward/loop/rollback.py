"""Going back to a checkpoint in the middle of a run, and on behind the data that did harm."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.arguments import option
from onward.checkpoint import layout, ranks, staging, store
from onward.errors import NonFinite
from onward.loop.accidents import last_whole
from onward.loop.continuing import return_to

if TYPE_CHECKING:
    from onward.hooks.base import TrainerBase

logger = logging.getLogger(__name__)


def roll_back(host: TrainerBase, trial: Any) -> None:
    """Take weights, optimizer, schedule and counters from the last whole checkpoint, and go on in the data.

    The samples between that checkpoint and here are not trained on again: the step count goes back, the cursor in the
    data does not, and the run takes as many steps as it was to take.

    Raises:
        NonFinite: this was one rollback too many.
    """
    due, host._rollback_due = host._rollback_due, None
    assert due is not None
    meters, allowed = host.meters, option(host.args, "max_rollbacks")
    host._flush_saves()
    found = ranks.from_first(str(last_whole(host, due.before_step) or "") if ranks.rank() == 0 else None)
    if meters.rollbacks >= allowed:
        raise NonFinite(
            f"{due.reason}: that would be rollback {meters.rollbacks + 1} of this run (max_rollbacks={allowed}). "
            f"The last good checkpoint is {found or 'none'}. Lower the learning rate or clean the data."
        )
    if not found:
        logger.warning("No rollback: no whole checkpoint is from before step %d. Training goes on.", due.before_step)
        return
    left = host.state.global_step
    _abandon_later(host, found)
    return_to(host, found, trial)
    meters.rollbacks += 1
    meters.data_lead += left - host.state.global_step
    reason = f"{due.reason}: back to {layout.name_of(host.state.global_step)} and on behind the data of step {left}"
    logger.warning("Rollback %d of %d: %s.", meters.rollbacks, allowed, reason)
    if hasattr(host.callback_handler, "on_train_error"):
        host.control = host.callback_handler.call_event(
            "on_rollback", host.args, host.state, host.control, checkpoint=found, reason=reason
        )


def _abandon_later(host: TrainerBase, found: str) -> None:
    """Delete what this run saved behind the checkpoint it goes back to: a resume must not take it for the newest.

    A push of it that is under way is given up, or it would read files that go, or those of a later save of that name;
    where one has arrived, the Hub goes back as well.
    """
    desk = host._desk()  # type: ignore[attr-defined]
    checkpoint, folder = Path(found), Path(host._get_output_dir(host._trial))
    step = store.recorded_step(checkpoint) or 0
    arrived = False
    if host.args.should_save and folder.is_dir():
        for each in reversed(store.list_checkpoints(folder)):
            if each.run == desk.run and each.step > step:
                if host.args.push_to_hub:
                    why, resumed = f"the run went back to {checkpoint.name}", desk.origin is not None
                    arrived |= host._withdraw_push(str(each.path), why, resumed)
                staging.remove_checkpoint(each.path)
    if arrived:
        host._push_from_checkpoint(found)
    desk.newest = checkpoint
    ranks.everyone(None)  # nobody goes on before it is done
