"""`EarlyStoppingCallback`: ends training when the watched metric no longer improves."""

from __future__ import annotations

import logging
from typing import Any

from typing_extensions import override

from onward.callbacks.base import TrainerCallback
from onward.errors import UsageError
from onward.state import ExportableState, TrainerControl, TrainerState
from onward.types import IntervalStrategy

logger = logging.getLogger(__name__)


class EarlyStoppingCallback(TrainerCallback, ExportableState):
    """Ends training after `early_stopping_patience` evaluations in a row without an improvement.

    Args:
        early_stopping_patience: evaluations without improvement that end training.
        early_stopping_threshold: how much better than ``state.best_metric`` a value must be to count as an improvement,
            in the unit of the metric.

    ``metric_for_best_model`` names the metric and ``greater_is_better`` its direction. A NaN is no improvement.
    """

    def __init__(self, early_stopping_patience: int = 1, early_stopping_threshold: float | None = 0.0) -> None:
        self.early_stopping_patience = early_stopping_patience
        self.early_stopping_threshold = early_stopping_threshold
        # Evaluations without improvement so far.
        self.early_stopping_patience_counter = 0

    def check_metric_value(self, args: Any, state: TrainerState, control: TrainerControl, metric_value: float) -> None:
        """Count `metric_value` as an improvement or not. ``state.best_metric`` is still the one before it."""
        if state.best_metric is None:
            improved = True
        else:
            gain = metric_value - state.best_metric if args.greater_is_better else state.best_metric - metric_value
            improved = gain > 0 and abs(gain) > (self.early_stopping_threshold or 0.0)
        self.early_stopping_patience_counter = 0 if improved else self.early_stopping_patience_counter + 1

    @override
    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.metric_for_best_model is None:
            raise UsageError(
                "EarlyStoppingCallback got metric_for_best_model=None, expected the name of the metric to watch: "
                "set it in the arguments, for example metric_for_best_model='loss'."
            )
        if args.eval_strategy == IntervalStrategy.NO:
            raise UsageError(
                "EarlyStoppingCallback got eval_strategy='no', expected 'steps' or 'epoch': "
                "without evaluations there is nothing to watch."
            )
        if not args.load_best_model_at_end:
            logger.warning(
                "EarlyStoppingCallback without load_best_model_at_end=True: training will end with the last weights, "
                "not with the best ones."
            )

    @override
    def on_evaluate(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        metrics = metrics or {}
        name = args.metric_for_best_model
        name = name if name.startswith("eval_") else f"eval_{name}"
        value = metrics.get(name)
        if value is None:
            logger.warning(
                "Early stopping watches %s, but this evaluation only has %s; it is not counted.",
                name,
                ", ".join(sorted(metrics)) or "no metrics",
            )
            return
        self.check_metric_value(args, state, control, value)
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True

    @override
    def state(self) -> dict[str, Any]:
        return {
            "args": {
                "early_stopping_patience": self.early_stopping_patience,
                "early_stopping_threshold": self.early_stopping_threshold,
            },
            "attributes": {"early_stopping_patience_counter": self.early_stopping_patience_counter},
        }
