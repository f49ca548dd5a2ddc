"""What surrounds a micro-batch and an optimizer step: sums, the guarded step, the schedule, the log line.

Nothing here waits for an accelerator, except where it says so.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch

from onward import engine
from onward.arguments import option
from onward.errors import UsageError
from onward.loop.accidents import judge
from onward.loop.account import interval_account
from onward.optim.guard import guarded_step, plain_step
from onward.optim.schedulers import steps_on_metric
from onward.types import StepPlace

if TYPE_CHECKING:
    from onward.hooks.base import TrainerBase

logger = logging.getLogger(__name__)


def count_micro_batch(host: TrainerBase, loss: torch.Tensor, inputs: Any) -> None:
    """Add up what a micro-batch contributes."""
    args = host.args
    total = host._tr_loss
    assert total is not None
    if loss.dim():  # of one number, as models return that gather it over devices
        loss = loss.reshape(())
    if host._loss_before is None:
        host._loss_before = total.item() if total.is_cpu else total.clone()
    # On CPU reading a number is free; an accelerator decides for itself, without being waited for.
    finite: Any = math.isfinite(loss.item()) if loss.is_cpu else torch.isfinite(loss)
    host._loss_finite = finite if host._loss_finite is True else host._loss_finite & finite
    if not args.logging_nan_inf_filter or finite is True:
        total += loss
    else:
        mean = total / (1 + host.state.global_step - host._globalstep_last_logged)
        total += mean if finite is False else torch.where(finite, loss, mean)
    host.current_flos += float(host.floating_point_ops(inputs))
    shortcuts = host._shortcuts
    packed = None if shortcuts is None else shortcuts.packed_tokens
    host.meters.count_batch(inputs, host._main_input_name(), packed)
    host._track_num_input_tokens(inputs)


def count_input_tokens(host: TrainerBase, inputs: Any) -> None:
    """Count the input tokens of a micro-batch, with padding or without, as `include_num_input_tokens_seen` says."""
    if host.args.include_num_input_tokens_seen == "no":
        return
    name = host._main_input_name()
    main = inputs.get(name) if hasattr(inputs, "get") else None
    if not torch.is_tensor(main):
        if not host._told_uncountable:
            host._told_uncountable = True
            logger.warning(
                "Input tokens cannot be counted: batches have no tensor '%s' (the model's main_input_name).", name
            )
        return
    tokens: Any = main.numel()
    if host.args.include_num_input_tokens_seen == "non_padding":
        pad = getattr(host.processing_class, "pad_token_id", None)
        if "attention_mask" in inputs:
            tokens = inputs["attention_mask"].sum()
        elif pad is not None:
            tokens = (main != pad).sum()
    host._open_tokens = host._open_tokens + tokens
    if host.accelerator.num_processes == 1 and host.args.device.type == "cpu":
        settle_input_tokens(host)


def settle_input_tokens(host: TrainerBase) -> None:
    """Add what was counted, over all processes, to the state. Waits for the device; all processes must call it."""
    if host.args.include_num_input_tokens_seen == "no":
        return
    add_up = engine.sums_over_processes(host.accelerator)
    counted = torch.as_tensor(host._open_tokens, dtype=torch.int64)
    host.state.num_input_tokens_seen += int((counted if add_up is None else add_up(counted)).item())  # host sync
    host._open_tokens = 0


def step_optimizer(host: TrainerBase, grad_norm: Any) -> None:
    """Step the optimizer where loss and gradients are finite, and the loss is not above the limit of a callback."""
    loss_finite, before = host._loss_finite, host._loss_before
    host._loss_finite, host._loss_before = True, None
    if option(host.args, "on_nonfinite") == "ignore" or not torch.is_tensor(grad_norm):
        plain_step(host.optimizer)
        host.meters.count_step()
        return
    finite = _is_finite(host, grad_norm, loss_finite)
    limit = getattr(host.control, "loss_limit", None)
    taken = finite if limit is None or before is None else _and(finite, _below(host, before, limit))
    if taken is True:
        plain_step(host.optimizer)
    else:
        guarded_step(host.optimizer, taken if torch.is_tensor(taken) else torch.tensor(taken))
    place = StepPlace(host._data_step, host.state.global_step + 1)
    host.meters.count_step(finite, place, None if taken is finite else taken)
    if taken is True:
        return
    if host._buffers is not None:  # running statistics take a NaN up in forward, and would keep it for ever
        host._buffers.put_back(unless=taken if torch.is_tensor(taken) else None)
    if before is not None and host.args.logging_nan_inf_filter:  # the mean is that of the steps taken
        assert host._tr_loss is not None
        host._tr_loss.fill_(before if taken is False else torch.where(taken, host._tr_loss, before))
    if taken is False:
        judge(host, host.state.global_step + 1)


def _is_finite(host: TrainerBase, grad_norm: torch.Tensor, loss_finite: Any) -> Any:
    """Whether loss and gradient are finite in all processes: a bool on CPU, a tensor on an accelerator.

    The exchange of gradients has spread what is not finite in one process to all: also a loss, because `training_step`
    makes the gradients of such a loss NaN. The loss of another process is therefore not asked for.
    """
    several = host._ways.several
    if getattr(host.accelerator, "scaler", None) is not None:
        # An overflow of scaled gradients is no accident but how the fp16 scaler finds its scale; the loss decides.
        return _in_all(host, loss_finite) if several else loss_finite
    norm_finite: Any = math.isfinite(grad_norm.item()) if grad_norm.device.type == "cpu" else torch.isfinite(grad_norm)
    return norm_finite if several else _and(norm_finite, loss_finite)


def _and(one: Any, other: Any) -> Any:
    if isinstance(one, bool):
        return other if one else False
    return one if other is True else one & other


def _in_all(host: TrainerBase, flag: Any) -> Any:
    flags = torch.as_tensor(flag, device=host.args.device, dtype=torch.float32)
    summed = host.accelerator.reduce(flags, reduction="sum")
    return summed == host.accelerator.num_processes


def _below(host: TrainerBase, before: Any, limit: float) -> Any:
    """Whether the loss of this step is at most `limit`, as the mean over processes."""
    assert host._tr_loss is not None
    loss = host._tr_loss - before
    if host.accelerator.num_processes > 1:
        loss = host.accelerator.reduce(loss, reduction="mean")
    return loss.item() <= limit if loss.device.type == "cpu" else loss <= limit


def step_scheduler(host: TrainerBase) -> None:
    """Advance the schedule."""
    if host.accelerator.scaler is not None and host.accelerator.optimizer_step_was_skipped:  # it found an overflow
        return
    if not steps_on_metric(host.lr_scheduler):
        try:
            host.lr_scheduler.step()
        except ValueError as error:  # torch's is that of a zip()
            known, groups = len(getattr(host.lr_scheduler, "base_lrs", ())), len(host.optimizer.param_groups)
            if known == groups:
                raise
            raise UsageError(
                f"The optimizer has {groups} parameter groups, but the schedule was made for {known}. Who adds a group "
                "adds its rate to the schedule as well: lr_scheduler.base_lrs.append(rate), and for a schedule of "
                "functions lr_scheduler.lr_lambdas.append(function). Or make all groups in create_optimizer, and "
                "leave weights out by requires_grad."
            ) from error


def log_interval(
    host: TrainerBase, tr_loss: torch.Tensor, grad_norm: Any, learning_rate: float | None, start_time: float
) -> None:
    """Log the steps since the last log line. This is where the host waits for an accelerator."""
    steps = host.state.global_step - host._globalstep_last_logged
    meters = host.meters
    rates = meters.close_interval(engine.sums_over_processes(host.accelerator))  # host sync
    left_out, meters.open_left_out = meters.open_left_out, 0
    summed = host.accelerator.gather(tr_loss).mean().item()  # host sync
    tr_loss -= tr_loss
    logs: dict[str, float] = {"loss": mean_loss(host, summed, steps, left_out)}
    if grad_norm is not None:
        logs["grad_norm"] = grad_norm.item() if torch.is_tensor(grad_norm) else grad_norm
    logs["learning_rate"] = host._get_learning_rate() if learning_rate is None else learning_rate
    if meters.nonfinite_steps:
        logs["nonfinite_steps"] = meters.nonfinite_steps
    host._total_loss_scalar += summed
    host._globalstep_last_logged = host.state.global_step
    host.store_flos()
    settle_input_tokens(host)
    host._interval_rates = interval_account(host, rates)
    host.log(logs, start_time)
    judge(host, host.state.global_step)


def mean_loss(host: TrainerBase, summed: float, steps: float, left_out: int) -> float:
    """Mean over the steps that were taken; NaN if there was none. Over all steps if NaN is not to be filtered out."""
    if not left_out or not host.args.logging_nan_inf_filter:
        return summed / steps
    return summed / (steps - left_out) if steps > left_out else math.nan
