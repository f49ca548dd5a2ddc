"""Steps that were left out because of a number that was not finite, or a loss that jumped: what follows from them.

The decision to leave a step out is `onward.loop.step.step_optimizer`'s and may live on the accelerator. Here the host
has learnt of it: at once on a CPU, at the next log line on an accelerator.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from onward.arguments import option
from onward.checkpoint import store
from onward.errors import NonFinite
from onward.types import StepPlace

if TYPE_CHECKING:
    from onward.hooks.base import TrainerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rollback:
    """A rollback that the loop is asked for."""

    before_step: int
    """The checkpoint must be of an earlier step than this."""
    reason: str


def spread_accidents(args: Any, loss: torch.Tensor) -> torch.Tensor:
    """Make the gradients of a loss that is not finite NaN: their exchange then tells all processes.

    A finite loss stays the same to the bit, and so do its gradients.
    """
    if option(args, "on_nonfinite") == "ignore":
        return loss
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan).to(loss.dtype)


def judge(host: TrainerBase, step: int) -> None:
    """Act on the steps that were left out since the last call.

    Args:
        host: the trainer.
        step: the optimizer step that was just decided, counted from 1.

    Raises:
        NonFinite: the policy is to raise, or there were too many in a row.
    """
    control = host.control
    asked = getattr(control, "roll_back_before", None)
    if asked is not None:
        control.roll_back_before = None
        host._rollback_due = Rollback(asked, "a callback asked for it")
    left_out, row = host.meters.take_unjudged()
    if not left_out:
        return
    bad = [place for place, finite in left_out if not finite]
    high = [place for place, finite in left_out if finite]
    what = " and ".join(
        text.format(_listed([place.in_data for place in places]))
        for text, places in (("NaN or infinite loss or gradient at {}", bad), ("loss above the limit at {}", high))
        if places
    )
    logger.warning(
        "%s: the weights were left as they were. Look at the data with trainer.batch_at(%s).",
        what,
        left_out[0][0].in_data,
    )
    policy = option(host.args, "on_nonfinite")
    if bad and policy == "raise":
        raise NonFinite(
            f"{what} (on_nonfinite='raise'). The step was not taken. {_advice(host, bad[0].in_run or step)}"
        )
    limit = option(host.args, "max_nonfinite_steps")
    if row >= limit:
        raise NonFinite(
            f"{row} optimizer steps in a row were left out (max_nonfinite_steps={limit}): {what}. "
            f"The weights are those from before them. {_advice(host, _first_of(left_out, row, step))}"
        )
    if bad and policy == "rollback":
        host._rollback_due = Rollback(bad[0].in_run or step, what)


def _first_of(left_out: list[tuple[StepPlace, bool]], row: int, now: int) -> int:
    """Where a row of steps that ends with the last of these began; some of it may have been acted on before."""
    return (left_out[-1][0].in_run or now) - row + 1


def _listed(places: list[int | None]) -> str:
    shown = ", ".join(map(str, places[:10]))
    return f"step{'s' if len(places) > 1 else ''} {shown}{' …' if len(places) > 10 else ''}"


def _advice(host: TrainerBase, before_step: int) -> str:
    host._flush_saves()  # every process gets here, and the newest checkpoint may be waiting for them to agree on it
    checkpoint = last_whole(host, before_step)
    good = "There is no checkpoint from before." if checkpoint is None else f"The last good checkpoint is {checkpoint}."
    return f"{good} Lower the learning rate, or look at the batches with trainer.batch_at(step)."


def last_whole(host: TrainerBase, before_step: int) -> Path | None:
    """The newest whole checkpoint from before a step: one that this run wrote, or the one that it went on from."""
    desk = host._desk()  # type: ignore[attr-defined]
    desk.writer.wait()
    folder = Path(host._get_output_dir(host._trial))
    ours = [each for each in store.list_checkpoints(folder) if each.run == desk.run] if folder.is_dir() else []
    if desk.origin is not None and desk.origin.is_dir():
        ours.insert(0, store.Checkpoint(desk.origin, store.recorded_step(desk.origin) or 0))
    for each in reversed(ours):
        if each.step < before_step and not store.problems(each.path):
            return each.path
    return None
