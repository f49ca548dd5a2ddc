"""GreedyLR: raise the learning rate while a metric improves, lower it while it does not.

Source: arXiv 2512.14527. The options, the decisions and the saved state are those of transformers' scheduler of this
name, so that either side continues the other's run.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

from torch.optim import Optimizer

from onward.errors import UsageError

log = logging.getLogger(__name__)

_SAVED = (
    "factor min_lrs max_lrs patience verbose cooldown warmup cooldown_counter warmup_counter mode threshold "
    "threshold_mode best num_bad_epochs num_good_epochs eps last_epoch smooth window_size reset_start "
    "reset_start_original _last_lr _init_lrs"
).split()


class GreedyLR:
    """A schedule that is told a metric at each `step` and changes all groups' learning rates in answer.

    After more than ``patience`` better values in a row the rate is divided by ``factor`` (< 1), after as many that are
    no better it is multiplied by it, within [``min_lr``, ``max_lr``] (a number, or one per parameter group).
    ``cooldown`` and ``warmup`` are calls to sit out after a cut and after a raise. ``threshold`` (absolute, or relative
    with ``threshold_mode="rel"``) is what counts as better; changes below ``eps`` are not made. With ``smooth`` the
    mean of the last ``window_size`` values is judged. After ``reset_start`` cuts at the lower bound all starts over.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.95,
        patience: int = 10,
        threshold: float = 1e-6,
        threshold_mode: str = "abs",
        cooldown: int = 0,
        warmup: int = 0,
        min_lr: float | list[float] = 1e-3,
        max_lr: float | list[float] = 1.0,
        eps: float = 1e-8,
        verbose: bool = False,
        smooth: bool = False,
        window_size: int = 50,
        reset_start: int = 500,
    ) -> None:
        if factor >= 1.0:
            raise UsageError(f"GreedyLR: got factor={factor}, expected less than 1")
        if mode not in ("min", "max"):
            raise UsageError(f"GreedyLR: got mode={mode!r}, expected 'min' or 'max'")
        if threshold_mode not in ("rel", "abs"):
            raise UsageError(f"GreedyLR: got threshold_mode={threshold_mode!r}, expected 'rel' or 'abs'")
        self.optimizer = optimizer
        self.mode, self.factor, self.patience, self.eps = mode, factor, patience, eps
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.cooldown, self.warmup, self.verbose = cooldown, warmup, verbose
        self.smooth, self.window_size = smooth, window_size
        self.reset_start = self.reset_start_original = reset_start
        self.min_lrs = self._per_group("min_lr", min_lr)
        self.max_lrs = self._per_group("max_lr", max_lr)
        self.last_epoch = 0
        self._init_lrs = self._rates()
        self._last_lr = self._rates()
        self._forget()

    def _per_group(self, name: str, value: float | list[float]) -> list[float]:
        groups = len(self.optimizer.param_groups)
        if not isinstance(value, list | tuple):
            return [value] * groups
        if len(value) != groups:
            raise UsageError(f"GreedyLR: got {len(value)} values of {name}, expected one for each of {groups} groups")
        return list(value)

    def _rates(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def _forget(self) -> None:
        """Drop what was learnt from the metrics so far."""
        self.best = math.inf if self.mode == "min" else -math.inf
        self.num_good_epochs = self.num_bad_epochs = 0
        self.cooldown_counter = self.warmup_counter = 0
        self._window: list[float] = []
        self._window_sum = 0.0

    def step(self, metrics: float, epoch: int | None = None) -> None:
        """Take note of one value of the metric and change the learning rates if it is time."""
        value = self._smoothed(float(metrics)) if self.smooth else float(metrics)
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        if self.cooldown_counter > 0 or self.warmup_counter > 0:
            self._sit_out()
        else:
            self._judge(value)
        self._last_lr = self._rates()

    def _smoothed(self, value: float) -> float:
        self._window.append(value)
        self._window_sum += value
        if len(self._window) > self.window_size:
            self._window_sum -= self._window.pop(0)
        return self._window_sum / len(self._window)

    def _sit_out(self) -> None:
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
        else:
            self.warmup_counter -= 1
        self.num_good_epochs = self.num_bad_epochs = 0

    def _judge(self, value: float) -> None:
        if self.is_better(value, self.best):
            self.best = value
            self.num_good_epochs, self.num_bad_epochs = self.num_good_epochs + 1, 0
        else:
            self.num_good_epochs, self.num_bad_epochs = 0, self.num_bad_epochs + 1
        if self.num_good_epochs > self.patience:
            self._raise()
            self.warmup_counter, self.num_good_epochs = self.warmup, 0
        elif self.num_bad_epochs > self.patience:
            self._cut()
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def is_better(self, current: float, best: float) -> bool:
        """Whether ``current`` beats ``best`` by more than the threshold."""
        margin = -self.threshold if self.mode == "min" else self.threshold
        goal = best * (1.0 + margin) if self.threshold_mode == "rel" else best + margin
        return current < goal if self.mode == "min" else current > goal

    def _cut(self) -> None:
        for group, low in zip(self.optimizer.param_groups, self.min_lrs, strict=True):
            new = max(float(group["lr"]) * self.factor, low)
            self._set(group, new, by=float(group["lr"]) - new)
        if all(group["lr"] <= low for group, low in zip(self.optimizer.param_groups, self.min_lrs, strict=True)):
            self.reset_start -= 1
            if self.reset_start <= 0:
                self._start_over()

    def _raise(self) -> None:
        for group, high in zip(self.optimizer.param_groups, self.max_lrs, strict=True):
            new = min(float(group["lr"]) / self.factor, high)
            self._set(group, new, by=new - float(group["lr"]))
        self.reset_start = self.reset_start_original

    def _set(self, group: dict[str, Any], new: float, by: float) -> None:
        """Set a group's rate, unless it would hardly move, or the wrong way: it may have started out of bounds."""
        if by <= self.eps:
            return
        if self.verbose:
            log.warning("GreedyLR, call %d: learning rate %.4e -> %.4e", self.last_epoch, group["lr"], new)
        group["lr"] = new

    def _start_over(self) -> None:
        for group, first in zip(self.optimizer.param_groups, self._init_lrs, strict=True):
            group["lr"] = first
        self._forget()
        self.reset_start = self.reset_start_original

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group after the latest `step`."""
        return self._last_lr

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, in plain values."""
        state = {name: copy.copy(getattr(self, name)) for name in _SAVED}
        if self.smooth:
            window = {"window_size": self.window_size, "values": list(self._window), "sum": self._window_sum}
            state["_streaming_avg"] = window
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, which also sets the learning rates of the optimizer."""
        for name in _SAVED:
            if name in state_dict:
                setattr(self, name, copy.copy(state_dict[name]))
        window = state_dict.get("_streaming_avg", {})
        self._window, self._window_sum = list(window.get("values", [])), window.get("sum", 0.0)
        if "_last_lr" in state_dict:
            for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=False):
                group["lr"] = rate
