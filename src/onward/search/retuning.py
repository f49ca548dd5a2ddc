"""Hyperparameters in an optimizer's state.

A trial that goes on from another trial's checkpoint (population-based training) loads the optimizer's state with it,
and in that state are the other trial's learning rate, weight decay and betas: without this they would win, and the new
hyperparameters would change nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onward.hooks.searching import SearchHooks


def retune(host: SearchHooks, checkpoint: str) -> None:
    """Put the arguments that differ from those of the checkpoint's trial into optimizer and schedule."""
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
    before, now = state.get("trial_params") or {}, host.state.trial_params or {}
    changed = {name for name in now if name in before and before[name] != now[name]}
    groups = host.optimizer.param_groups
    if "learning_rate" in changed and before["learning_rate"]:
        _scale_learning_rates(host, float(now["learning_rate"]) / float(before["learning_rate"]))
    if "weight_decay" in changed:
        for number, group in enumerate(groups):
            # The first group decays; the other holds biases and norms, which never do.
            if group.get("weight_decay") or number == 0:
                group["weight_decay"] = host.args.weight_decay
    for group in groups:
        if changed & {"adam_beta1", "adam_beta2"} and "betas" in group:
            group["betas"] = (host.args.adam_beta1, host.args.adam_beta2)
        if "adam_epsilon" in changed and isinstance(group.get("eps"), float):
            group["eps"] = host.args.adam_epsilon


def _scale_learning_rates(host: SearchHooks, ratio: float) -> None:
    """All of them: what a step uses, what the schedule starts from, and what it remembers."""
    for group in host.optimizer.param_groups:
        for name in ("lr", "initial_lr"):
            if name in group:
                group[name] *= ratio
    schedule: Any = host.lr_scheduler
    for name in ("base_lrs", "_last_lr"):
        if hasattr(schedule, name):
            setattr(schedule, name, [rate * ratio for rate in getattr(schedule, name)])
