"""Hooks about evaluation: loss, metrics and predictions on data that is not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from onward.errors import UnknownMetric, did_you_mean
from onward.hooks.base import TrainerBase
from onward.loop import evaluate as flow
from onward.loop.prediction import prediction_step
from onward.optim.schedulers import steps_on_metric
from onward.types import EvalLoopOutput, PredictionOutput

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader


class EvaluationHooks(TrainerBase):
    """`evaluate`, `predict`, the loop and the step under both, and what a metric decides."""

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Compute loss and metrics on a set.

        Args:
            eval_dataset: a data set, the name of one of ``self.eval_dataset``, a dictionary of data sets, or `None` for
                ``self.eval_dataset``. With a dictionary each name becomes part of the prefix (``eval_{name}_loss``).
            ignore_keys: keys of the model's output that are no predictions.
            metric_key_prefix: what the names of the metrics begin with.

        Returns:
            The metrics, with runtime and rates.

        Raises:
            DataError: there is no data to evaluate on.
            UsageError: ``compute_metrics`` returns no dictionary.
        """
        datasets = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(datasets, dict):
            evaluate_one = partial(self.evaluate, ignore_keys=ignore_keys)
            return flow.evaluate_each(evaluate_one, datasets, metric_key_prefix, by_name=eval_dataset is None)
        return flow.evaluate(self, datasets, ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Predict a set, and score it where it has labels.

        Args:
            test_dataset: what to predict.
            ignore_keys: keys of the model's output that are no predictions.
            metric_key_prefix: what the names of the metrics begin with.

        Returns:
            ``(predictions, label_ids, metrics)``: arrays over all samples, in the order of the set. Where the second
            dimension differs between batches, the shorter are padded with -100.
        """
        return flow.predict(self, test_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Run the model over a loader: what `evaluate` and `predict` have in common.

        Args:
            dataloader: the batches.
            description: ``Evaluation``, or ``Prediction`` to get the predictions whatever the metric needs.
            prediction_loss_only: leave out predictions and labels; `None` for the argument of that name.
            ignore_keys: keys of the model's output that are no predictions.
            metric_key_prefix: what the names of the metrics begin with.

        Returns:
            ``(predictions, label_ids, metrics, num_samples)``, arrays over all samples and processes.
        """
        loss_only = self.args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        return flow.evaluation_loop(
            self, dataloader, flow.EvalTask(description, loss_only, ignore_keys, metric_key_prefix)
        )

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Loss, logits and labels of one batch of this process.

        Args:
            model: the model as it is called.
            inputs: one collated batch.
            prediction_loss_only: leave out logits and labels.
            ignore_keys: keys of the model's output that are no predictions; `None` for those that its config names.

        Returns:
            ``(loss, logits, labels)``: a scalar and two tensors or tuples of tensors, each `None` where there is none.
        """
        return prediction_step(self, model, inputs, prediction_loss_only, ignore_keys)

    def _evaluate(
        self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False
    ) -> dict[str, float]:
        """Evaluate during training: then report to the search, and step a schedule that waits for a metric."""
        with self.meters.paused():
            metrics = self.evaluate(ignore_keys=ignore_keys_for_eval)
        self._report_to_hp_search(trial, self.state.global_step, metrics)
        if not skip_scheduler and steps_on_metric(self.lr_scheduler):
            self.lr_scheduler.step(watched_metric(metrics, self.args.metric_for_best_model))
        return metrics

    def _determine_best_metric(self, metrics: Mapping[str, float], trial: Any) -> bool:
        """Whether the watched metric is the best so far; if so it is remembered."""
        args, state = self.args, self.state
        if args.metric_for_best_model is None:
            return False
        value = watched_metric(metrics, args.metric_for_best_model)
        if state.best_metric is None:
            state.best_metric = float("-inf") if args.greater_is_better else float("inf")
        if not (value > state.best_metric if args.greater_is_better else value < state.best_metric):
            return False
        state.best_metric = value
        if args.save_strategy in ("steps", "epoch", "best"):
            state.best_global_step = state.global_step
        return True


def watched_metric(metrics: Mapping[str, float], name: str | None) -> float:
    """The value of ``metric_for_best_model``, which may be given without the prefix ``eval_``; by default the loss.

    Raises:
        UnknownMetric: evaluation did not yield it.
    """
    name = "loss" if name is None else name
    key = name if name.startswith("eval_") else f"eval_{name}"
    if key not in metrics:
        raise UnknownMetric(
            f"metric_for_best_model={name!r}, but evaluation yields no {key!r}; there is {', '.join(sorted(metrics))}."
            f"{did_you_mean(key, metrics)} Name one of these, or make compute_metrics return it."
        )
    return metrics[key]
