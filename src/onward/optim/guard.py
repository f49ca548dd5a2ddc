"""The optimizer step that is left out when a number was not finite, without asking the device.

Reading a flag from an accelerator makes the host wait for everything that was queued. Fused optimizers of torch take
the flag as a tensor instead (``found_inf``, made for fp16 scaling) and leave weights, moments and step counters as they
are when it is 1. Where that is not to be had, the host reads the flag: one sync per step, marked below.

A step that was left out still counts as a step: data, schedule and ``global_step`` go on. ``step_was_skipped`` of
accelerate's wrapper therefore stays False; it belongs to the fp16 scaler, whose loop does hold the schedule back.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_HONOURS_FOUND_INF = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)


def all_finite(*values: Tensor | None) -> Tensor:
    """Whether every value (0-d tensors: a loss, a gradient norm) is finite, as a 0-d bool tensor on their device."""
    present = [value for value in values if value is not None]
    if all(value.device.type == "cpu" for value in present):  # reading costs nothing here, and tensor arithmetic more
        return torch.tensor(all(math.isfinite(value.item()) for value in present))
    flag = torch.isfinite(present[0])
    for value in present[1:]:
        flag = flag & torch.isfinite(value.to(flag.device))
    return flag


def guarded_step(optimizer: Any, finite: Tensor) -> None:
    """Step ``optimizer``, but leave weights and its state untouched to the bit where ``finite`` is false.

    ``optimizer`` is one of torch's or accelerate's wrapper around one; ``finite`` is a 0-d bool tensor, the same on
    every rank. On a CPU this is a plain branch. On an accelerator a fused optimizer is told on the device, any other
    costs a host sync. With an fp16 scaler the step is the scaler's: it looks at the gradients itself.

    Optimizers that update inside the backward pass (LOMO, layer-wise ones) have updated already and cannot be guarded.
    """
    if getattr(optimizer, "scaler", None) is not None:
        optimizer.step()
        return
    inner = innermost(optimizer)
    if finite.device.type != "cpu" and takes_flag(inner):
        _step_with_flag(optimizer, inner, finite)
    elif bool(finite):  # host sync on an accelerator: this optimizer cannot be told on the device
        plain_step(optimizer)
    else:
        # The schedule that steps next warns of a step that never happened; this one was left out on purpose.
        optimizer._opt_called = True


def plain_step(optimizer: Any) -> None:
    """Step, past accelerate's wrapper where the wrapper would do nothing but pass it on.

    Before it passes it on, the wrapper searches the installed packages for LOMO: half a millisecond at each step.
    """
    inner = innermost(optimizer)
    if inner is optimizer or not _only_passes_on(optimizer, inner):
        optimizer.step()
        return
    optimizer._opt_called = True  # the schedule looks for it on the wrapper, which it was given
    inner.step()


def _only_passes_on(wrapper: Any, inner: Any) -> bool:
    """Whether stepping ``wrapper``, one of accelerate's, comes down to stepping ``inner``."""
    kind = type(wrapper)
    if (kind.__module__, kind.__name__) != ("accelerate.optimizer", "AcceleratedOptimizer"):
        return False
    # A schedule puts a counting function in the place of `step`; anything else there is somebody's own.
    step = vars(wrapper).get("step")
    untouched = step is None or getattr(step, "__wrapped__", None) is kind.step
    distributed = str(getattr(wrapper.accelerator_state.distributed_type, "value", ""))
    return (
        untouched
        and wrapper.scaler is None
        and wrapper.optimizer is inner
        and wrapper.gradient_state.sync_gradients
        and distributed in ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP")
        and type(inner).__name__ not in ("Lomo", "AdaLomo")
    )


def innermost(optimizer: Any) -> Any:
    """The optimizer inside any number of wrappers."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def takes_flag(optimizer: Any) -> bool:
    """Whether the next step of ``optimizer`` honours ``found_inf`` on the device.

    Only torch's own classes are trusted with it: a subclass may touch weights in a `step` of its own. A fused SGD with
    momentum does not honour it on its very first step: it makes its buffers without filling them, and would take what
    happened to be in memory for momentum from then on.
    """
    if type(optimizer) not in _HONOURS_FOUND_INF or not all(group["fused"] for group in optimizer.param_groups):
        return False
    if type(optimizer) is not torch.optim.SGD:
        return True
    return all(group["momentum"] == 0 for group in optimizer.param_groups) or bool(optimizer.state)


def _step_with_flag(optimizer: Any, inner: Any, finite: Tensor) -> None:
    # A float tensor of one element, as the kernels expect it; made on the device, nothing waits.
    inner.found_inf = torch.logical_not(finite).to(torch.float32).reshape(())
    try:
        plain_step(optimizer)
    finally:
        # Left behind, the flag of this step would decide over a later one that is stepped without the guard.
        del inner.found_inf
