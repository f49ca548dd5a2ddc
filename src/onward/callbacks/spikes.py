"""`LossSpikeCallback`: notices when the training loss jumps."""

from __future__ import annotations

import logging
import math
from statistics import median
from typing import Any

from typing_extensions import override

from onward.callbacks.base import TrainerCallback
from onward.errors import UsageError
from onward.state import ExportableState, TrainerState

logger = logging.getLogger(__name__)

_FEWEST = 5
"""Losses that must be known before one of them can be said to stick out."""
_SCALE = 1.4826
"""Median absolute deviation times this is the standard deviation, where values are normally distributed."""


class LossSpikeCallback(TrainerCallback, ExportableState):
    """Warns when a logged loss lies far above those before it, and keeps the steps in `spikes`.

    A loss is a spike when it exceeds the median of the last `window` logged losses by more than `threshold` times their
    spread (the scaled median absolute deviation, and at least one percent of the median). Median and spread do not
    follow single outliers, so a spike neither hides the next one nor passes for the new normal. Each logged loss is
    the mean since the log line before: ``logging_steps=1`` sees every step.

    Args:
        threshold: spreads above the median; 6 is far outside of noise.
        window: logged losses to compare with, at least 5.
        action: what to do about a spike: ``"log"`` it; ``"skip"``: leave every step out whose own loss (the mean over
            its micro-batches and all processes) is above the limit, before it reaches the weights; ``"rollback"``: go
            back to the last checkpoint from before the spike and on behind its data, as ``on_nonfinite`` does. Steps
            left out count for ``max_nonfinite_steps``, and rollbacks for ``max_rollbacks``.

    Raises:
        UsageError: a threshold that is not positive, a window that is too short, or an unknown action.
    """

    def __init__(self, threshold: float = 6.0, window: int = 50, action: str = "log") -> None:
        if threshold <= 0 or window < _FEWEST:
            raise UsageError(
                f"LossSpikeCallback got threshold={threshold}, window={window}; "
                f"expected a positive threshold and a window of at least {_FEWEST} log lines."
            )
        if action not in ("log", "skip", "rollback"):
            raise UsageError(f"LossSpikeCallback got action={action!r}, expected 'log', 'skip' or 'rollback'.")
        self.threshold, self.window, self.action = threshold, window, action
        self.losses: list[float] = []
        """The last finite losses, oldest first."""
        self.spikes: list[int] = []
        """Steps at whose log line the loss was a spike."""
        self.last_logged = 0
        """Step of the latest log line."""
        self._gone_back_from: list[int] | None = None

    @override
    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._ask(control)  # of a run that is resumed, whose losses are known already

    def _ask(self, control: Any) -> None:
        if self.action == "skip":
            control.loss_limit = self.limit()

    @override
    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        loss = (logs or {}).get("loss")
        if not isinstance(loss, (int, float)) or not math.isfinite(loss):
            return  # what is not finite is the business of `on_nonfinite`
        limit = self.limit()
        previous, self.last_logged = self.last_logged, state.global_step
        if limit is not None and loss > limit:
            self.spikes = [*self.spikes, state.global_step]
            logger.warning(
                "The loss jumped to %.4g at step %d; the median of the last %d log lines is %.4g and the limit %.4g.",
                loss, state.global_step, len(self.losses), median(self.losses), limit,
            )  # fmt: skip
            if self.action == "rollback":
                control.roll_back_before = previous + 1
                self._gone_back_from = self.spikes
                return  # what follows is compared with what came before
        self.losses = [*self.losses, float(loss)][-self.window :]
        self._ask(control)

    def on_rollback(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """The run went back to a checkpoint, and this callback's losses with it; what was seen stays seen."""
        self.spikes = self._gone_back_from or self.spikes
        self._gone_back_from = None

    def limit(self) -> float | None:
        """The loss above which the next one is a spike; None while too few are known."""
        if len(self.losses) < _FEWEST:
            return None
        middle = median(self.losses)
        spread = _SCALE * median(abs(loss - middle) for loss in self.losses)
        return middle + self.threshold * max(spread, 0.01 * abs(middle))

    @override
    def state(self) -> dict[str, Any]:
        return {
            "args": {"threshold": self.threshold, "window": self.window, "action": self.action},
            "attributes": {"losses": self.losses, "spikes": self.spikes, "last_logged": self.last_logged},
        }
