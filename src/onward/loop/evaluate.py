"""One evaluation or prediction: the model over a set, without gradients.

    prepare the model
    for each batch:
        prediction_step                                 loss, logits, labels of this process
        pad and gather over processes                   without the duplicates that fill up the last batch
        on_prediction_step
        score, or keep for the end
    metrics → log → on_evaluate

Memory is flat in the size of the set unless something needs all predictions at the end: `predict`, or a
``compute_metrics`` that is called once with everything.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from onward import engine, engine_sharding, model_setup
from onward.gather import BatchStore, find_batch_size, has_length
from onward.loop.leave import leave_evaluation_if_asked
from onward.loop.scoring import Batch, Scorer, choose_scorer
from onward.loop.smaller_evaluation import SmallerEvaluation
from onward.meters import speed_metrics
from onward.sharding import reshard
from onward.types import EvalLoopOutput, PredictionOutput

if TYPE_CHECKING:
    from torch import nn

    from onward.hooks.base import TrainerBase

logger = logging.getLogger(__name__)

_WARN_FROM = 2**30
"""Bytes of predictions from which on it is worth a warning."""
_PREDICTION = "Prediction"


@dataclass
class EvalTask:
    """What one evaluation is to do."""

    description: str
    """``Evaluation`` or ``Prediction``; the latter returns predictions."""
    loss_only: bool
    """Whether logits and labels are of no interest."""
    ignore_keys: list[str] | None
    """Keys of the model's output that are no predictions."""
    prefix: str
    """Prefix of the names of the metrics."""
    smaller: SmallerEvaluation | None = None
    """Predicts in parts where memory runs out, if `auto_find_batch_size` asks for it."""


# -- the two verbs ----------------------------------------------------------------------------------------------------


def evaluate(host: TrainerBase, dataset: Any, ignore_keys: list[str] | None, prefix: str) -> dict[str, float]:
    """Evaluate on one set, log the metrics and tell the callbacks."""
    host._memory_tracker.start("eval")
    loader = host.get_eval_dataloader(dataset)
    start_time = _clock(host)
    output: EvalLoopOutput = host.evaluation_loop(
        loader,
        description="Evaluation",
        prediction_loss_only=True if host.compute_metrics is None else None,  # without a metric no logits are kept
        ignore_keys=ignore_keys,
        metric_key_prefix=prefix,
    )
    metrics = _with_speed(host, output, start_time(), prefix)
    host.log(metrics)
    host.control = host.callback_handler.on_evaluate(host.args, host.state, host.control, metrics)
    host._memory_tracker.stop_and_update_metrics(metrics, stage="eval")
    return metrics


def evaluate_each(
    evaluate_one: Callable[..., dict[str, float]], datasets: dict[str, Any], prefix: str, by_name: bool
) -> dict[str, float]:
    """Evaluate on several sets; the name of each becomes part of the prefix.

    Args:
        evaluate_one: evaluates on one set, or on one of the trainer's own sets by its name.
        datasets: the sets by name.
        prefix: prefix of all metrics.
        by_name: hand on the names instead of the sets, so that the loaders of the trainer's own can be kept.
    """
    metrics: dict[str, float] = {}
    for name, dataset in datasets.items():
        metrics |= evaluate_one(eval_dataset=name if by_name else dataset, metric_key_prefix=f"{prefix}_{name}")
    return metrics


def predict(host: TrainerBase, dataset: Any, ignore_keys: list[str] | None, prefix: str) -> PredictionOutput:
    """Predict a set, and score it where it has labels."""
    host._memory_tracker.start("test")
    loader = host.get_test_dataloader(dataset)
    start_time = _clock(host)
    output: EvalLoopOutput = host.evaluation_loop(
        loader, description=_PREDICTION, ignore_keys=ignore_keys, metric_key_prefix=prefix
    )
    metrics = _with_speed(host, output, start_time(), prefix)
    host.control = host.callback_handler.on_predict(host.args, host.state, host.control, metrics)
    host._memory_tracker.stop_and_update_metrics(metrics, stage="test")
    return PredictionOutput(predictions=output.predictions, label_ids=output.label_ids, metrics=metrics)


def _clock(host: TrainerBase) -> Callable[[], float]:
    """When this evaluation began, to be asked at its end; if the model was prepared meanwhile, that much later.

    That time is spent once in the life of a trainer: taken off every evaluation, it would leave short ones none.
    """
    began, prepared = time.time(), hasattr(host, "model_preparation_time")
    return lambda: began if prepared else began + getattr(host, "model_preparation_time", 0.0)


def _with_speed(host: TrainerBase, output: EvalLoopOutput, start_time: float, prefix: str) -> dict[str, float]:
    metrics = output.metrics if output.metrics is not None else {}
    samples = output.num_samples or 0
    steps = math.ceil(samples / (host.args.eval_batch_size * host.args.world_size))
    metrics.update(speed_metrics(prefix, start_time, num_samples=samples, num_steps=steps))
    return metrics


# -- the loop ---------------------------------------------------------------------------------------------------------


def evaluation_loop(host: TrainerBase, dataloader: Any, task: EvalTask) -> EvalLoopOutput:
    """Run the model over a loader and collect losses, metrics and, where asked for, predictions."""
    model = _prepare_model(host)
    _announce(host, dataloader, task)
    _to_evaluation_mode(model, host.optimizer)
    host.callback_handler.eval_dataloader = dataloader
    scorer = choose_scorer(host.compute_metrics, host.args, host.args.device)
    kept = _Kept.for_task(host, task, scorer, _expected_samples(host, dataloader))
    if host.args.auto_find_batch_size:
        task.smaller = SmallerEvaluation(host)
    try:
        for inputs, is_last in with_last(dataloader, host.accelerator.gradient_state):
            samples = find_batch_size(inputs)
            kept.samples += samples or 0
            batch = _predict_batch(host, model, inputs, task)
            host.control = host.callback_handler.on_prediction_step(host.args, host.state, host.control)
            leave_evaluation_if_asked(host)
            scorer.take(batch, is_last)
            kept.take(batch)
            _warn_of_size(host, kept)
            del batch, inputs  # else they live on beside the next batch
    finally:
        reshard(model)
        # Seq2SeqTrainer and others set another one for a single evaluation.
        host.gather_function = engine.gather_function(host.accelerator, host.args.eval_use_gather_object)
    if task.smaller is not None:
        task.smaller.close()
    everything = kept.arrays()
    num_samples = _count_samples(host, dataloader, kept.samples)
    metrics = _name_metrics(host, scorer.metrics(everything), everything.losses, task.prefix)
    return EvalLoopOutput(everything.predictions, everything.labels, metrics, num_samples)


def _prepare_model(host: TrainerBase) -> nn.Module:
    """The model as it is called: prepared by accelerate unless training did that, in the precision of evaluation."""
    model_setup.check_present(host.model)
    model = host._wrap_model(host.model, training=False)
    if host.is_fsdp_enabled:
        engine_sharding.shard(host.accelerator, host.model, host.optimizer)
    elif len(host.accelerator._models) == 0 and model is host.model:
        began = time.time()
        model = engine.prepared_to_evaluate(host.accelerator, model)
        host.model_preparation_time = round(time.time() - began, 4)
        if model is not host.model and host.accelerator.num_processes == 1:  # several are wrapped when they train
            host.model_wrapped = model
    if not host.is_in_train:
        if host.args.fp16_full_eval:
            model = model.to(dtype=torch.float16, device=host.args.device)
        elif host.args.bf16_full_eval:
            model = model.to(dtype=torch.bfloat16, device=host.args.device)
    return model


def _to_evaluation_mode(model: Any, optimizer: Any) -> None:
    for part in (model, optimizer):  # schedule-free optimizers evaluate at other weights than they train at
        if callable(getattr(part, "eval", None)):
            part.eval()


def _announce(host: TrainerBase, dataloader: Any, task: EvalTask) -> None:
    expected = _expected_samples(host, dataloader)
    examples = "an unknown number of" if expected is None else f"{expected:,}"
    logger.info("%s: %s examples, %s per batch and process.", task.description, examples, host.args.eval_batch_size)


def with_last(dataloader: Any, gradient_state: Any) -> Iterator[tuple[Any, bool]]:
    """The batches of a loader, each with whether it is the last.

    accelerate's loaders know that themselves, and gathering relies on their place: fetching ahead of them would make it
    drop samples of the last batch but one. Others are read one batch ahead.
    """
    before = gradient_state.active_dataloader
    batches = iter(dataloader)
    try:
        batch = next(batches)
    except StopIteration:
        return
    if gradient_state.active_dataloader is not before:
        yield batch, gradient_state.end_of_dataloader
        for batch in batches:
            yield batch, gradient_state.end_of_dataloader
        return
    for following in batches:
        yield batch, False
        batch = following
    yield batch, True


def _predict_batch(host: TrainerBase, model: nn.Module, inputs: dict[str, Any], task: EvalTask) -> Batch:
    """One batch: predict, pad to a common length, gather over processes."""
    if task.smaller is None:
        losses, logits, labels = host.prediction_step(model, inputs, task.loss_only, ignore_keys=task.ignore_keys)
    else:
        losses, logits, labels = task.smaller.predict(model, inputs, task.loss_only, task.ignore_keys)
    batch = Batch(raw_inputs=inputs)
    if losses is not None:
        batch.losses = host.gather_function(losses.repeat(host.args.eval_batch_size))
    if "inputs" in host.args.include_for_metrics:
        main = host._prepare_input(inputs[getattr(host.model, "main_input_name", "input_ids")])
        batch.inputs = host.gather_function(_pad(host, main))
    if task.loss_only and host.compute_metrics is None and task.description != _PREDICTION:
        return batch  # an overridden prediction_step may return logits all the same
    if labels is not None:
        labels = _pad(host, labels)
    if logits is not None:
        logits = _pad(host, logits)
        if host.preprocess_logits_for_metrics is not None:
            logits = host.preprocess_logits_for_metrics(logits, labels)
        batch.predictions = host.gather_function(logits)
    if labels is not None:
        batch.labels = host.gather_function(labels)
    return batch


def _pad(host: TrainerBase, nest: Any) -> Any:
    if host.accelerator.num_processes == 1:
        return nest  # accelerate would wait for the device to learn that there is nothing to pad
    return host.accelerator.pad_across_processes(nest, dim=1, pad_index=-100)


# -- what is kept -----------------------------------------------------------------------------------------------------


@dataclass
class _Kept:
    """What is kept of the batches: losses always, the rest where something needs it at the end."""

    predictions_too: bool
    objects: bool
    """Whether batches are lists with an entry per sample, because they were gathered as objects."""
    expected: int | None
    """Samples to come, where the loader knows."""
    losses: BatchStore
    predictions: BatchStore
    labels: BatchStore
    inputs: BatchStore
    samples: int = 0
    """Samples that this process has seen."""
    gathered: int = 0
    """Samples that `predictions` holds, over all processes."""

    @classmethod
    def for_task(cls, host: TrainerBase, task: EvalTask, scorer: Scorer, expected: int | None) -> _Kept:
        join = host.args.eval_do_concat_batches
        wanted = scorer.keeps_predictions or task.description == _PREDICTION
        objects = host.args.eval_use_gather_object and host.accelerator.num_processes > 1
        losses, predictions, labels, inputs = (BatchStore(join, expected) for _ in range(4))
        return cls(wanted, objects, expected, losses, predictions, labels, inputs)

    def take(self, batch: Batch) -> None:
        """Keep what is wanted of a batch."""
        if batch.losses is not None:
            self.losses.add(batch.losses, rows=True)
        if not self.predictions_too:
            return
        for store, nest, rows in (
            (self.predictions, batch.predictions, self.objects),  # a list of the model's is one of its layers, say
            (self.labels, batch.labels, True),
            (self.inputs, batch.inputs, True),
        ):
            if nest is not None:
                store.add(nest, rows=rows)
        if (found := batch.predictions) is not None:
            part = found[0] if isinstance(found, tuple) and found else found
            self.gathered += len(part) if self.objects else find_batch_size(found) or 0

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays will take, for what was kept so far."""
        return self.predictions.nbytes + self.labels.nbytes + self.inputs.nbytes

    def arrays(self) -> Batch:
        """Everything that was kept, as arrays."""
        losses = self.losses.arrays()
        if isinstance(losses, list) and np.ndim(losses[0]) == 0:  # gathered as objects
            losses = np.array(losses)
        return Batch(losses, self.predictions.arrays(), self.labels.arrays(), self.inputs.arrays())


def _expected_samples(host: TrainerBase, dataloader: Any) -> int | None:
    return host.num_examples(dataloader) if has_length(dataloader) else None


def _warn_of_size(host: TrainerBase, kept: _Kept) -> None:
    """Warn once, as soon as the first batch shows it, that the predictions will fill the memory of the host."""
    if host._warned_of_predictions or not kept.gathered or not host.is_world_process_zero():
        return
    total = kept.expected
    each = kept.nbytes / kept.gathered
    expected = kept.nbytes if total is None else each * max(total, kept.gathered)
    if expected < _WARN_FROM:
        return
    host._warned_of_predictions = True
    so_far = "so far, and growing" if total is None else f"for {total:,} samples"
    logger.warning(
        "The predictions of this evaluation are kept in host memory: about %.1f GiB in each process %s (%s bytes a "
        "sample). To keep memory flat, use a streaming metric: pass an object with update() and compute() as "
        "compute_metrics, or set batch_eval_metrics=True; or make them smaller with preprocess_logits_for_metrics.",
        expected / 2**30, so_far, f"{each:,.0f}",
    )  # fmt: skip


# -- the figures ------------------------------------------------------------------------------------------------------


def _count_samples(host: TrainerBase, dataloader: Any, seen: int) -> int:
    """Samples in the set, or those seen where it does not say."""
    dataset = getattr(dataloader, "dataset", None)
    if has_length(dataset):
        count = len(dataset)
    elif type(dataset).__name__ == "IterableDatasetShard" and getattr(dataset, "num_examples", 0) > 0:
        count = dataset.num_examples  # type: ignore[union-attr]
    else:
        count = host.num_examples(dataloader) if has_length(dataloader) else seen
    return count or seen


def _name_metrics(host: TrainerBase, found: dict[str, Any], losses: Any, prefix: str) -> dict[str, float]:
    """All metrics under their names, which begin with the prefix: first what came with it, as transformers does."""
    whole = f"{prefix}_"
    metrics: dict[str, float] = {name: value for name, value in found.items() if name.startswith(whole)}
    if isinstance(losses, list):
        losses = np.concatenate([np.atleast_1d(part) for part in losses])
    if isinstance(losses, np.ndarray):
        finite = np.isfinite(losses)
        if not finite.all():
            logger.warning("%d of %d losses of this evaluation are NaN or infinite.", (~finite).sum(), finite.size)
        if host.args.logging_nan_inf_filter and finite.any():
            losses = losses[finite]
        metrics[f"{prefix}_loss"] = losses.mean().item()
    if hasattr(host, "model_preparation_time"):
        metrics[f"{prefix}_model_preparation_time"] = host.model_preparation_time
    metrics |= {whole + name: value for name, value in found.items() if not name.startswith(whole)}
    return metrics
