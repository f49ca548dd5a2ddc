"""Evaluation, prediction, checkpoints and what is decided from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..models import Regression, classifier, gpt2, labelled, llama, pad, points, ragged, t5, tokens
from ..record import exact
from .registry import scenario


def accuracy(prediction: Any) -> dict[str, float]:
    """Share of right classes."""
    return {"accuracy": float((np.argmax(prediction.predictions, axis=-1) == prediction.label_ids).mean())}


@scenario
def evaluation_by_steps(stage: Any) -> Any:
    """With metrics, a delay, and a batch size of its own."""
    parts = {"eval_dataset": labelled(13, seed=1), "compute_metrics": accuracy}
    changes = {"eval_strategy": "steps", "eval_steps": 3, "eval_delay": 4, "per_device_eval_batch_size": 5}
    return stage.train(classifier(), labelled(), parts, **changes)


@scenario
def evaluation_by_epoch(stage: Any) -> Any:
    """Also before the first step."""
    parts = {"eval_dataset": labelled(13, seed=1), "compute_metrics": accuracy}
    return stage.train(classifier(), labelled(), parts, eval_strategy="epoch", eval_on_start=True)


@scenario
def evaluation_of_several_sets(stage: Any) -> Any:
    """A dict of data sets, evaluated under their names."""
    sets = {"near": labelled(7, seed=1), "far": labelled(9, seed=2)}
    parts = {"eval_dataset": sets, "compute_metrics": accuracy}
    return stage.train(classifier(), labelled(), parts, eval_strategy="epoch", num_train_epochs=2)


@scenario
def evaluation_of_ragged_lengths(stage: Any) -> Any:
    """Batches of different widths are padded with -100 when they are put together."""

    def metrics(prediction: Any) -> dict[str, float]:
        known = prediction.label_ids != -100
        return {"known": float(known.sum()), "sum": float(np.abs(prediction.predictions[known]).sum())}

    parts = {"data_collator": pad, "eval_dataset": ragged(11, seed=1), "compute_metrics": metrics}
    changes = {"eval_accumulation_steps": 1, "per_device_eval_batch_size": 4, "eval_strategy": "epoch"}
    return stage.train(llama(), ragged(), parts, num_train_epochs=1, **changes)


@scenario
def evaluation_batch_by_batch(stage: Any) -> Any:
    """`batch_eval_metrics`, logits preprocessed, inputs and losses included for the metrics."""
    seen: list[Any] = []

    def metrics(prediction: Any, compute_result: bool) -> dict[str, float]:
        parts = (prediction.predictions, prediction.label_ids, prediction.inputs, prediction.losses)
        seen.append([exact(part) for part in parts])
        return {"batches": float(len(seen))} if compute_result else {}

    parts = {
        "eval_dataset": labelled(13, seed=1),
        "compute_metrics": metrics,
        "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1),
    }
    changes = {"batch_eval_metrics": True, "include_for_metrics": ["inputs", "loss"], "eval_strategy": "epoch"}
    return {**stage.train(classifier(), labelled(), parts, num_train_epochs=1, **changes), "seen": seen}


@scenario
def prediction(stage: Any) -> Any:
    """`evaluate` and `predict` without training."""
    args = stage.arguments(per_device_eval_batch_size=4)
    parts = {"eval_dataset": labelled(10, seed=1), "compute_metrics": accuracy}
    trainer = stage.trainer(classifier(), args, **parts)
    evaluated = trainer.evaluate()
    predicted = trainer.predict(labelled(6, seed=2), metric_key_prefix="held_out")
    return {
        "evaluated": exact(evaluated),
        "predictions": exact(predicted.predictions),
        "label_ids": exact(predicted.label_ids),
        "metrics": exact(predicted.metrics),
        "events": stage.recorder.trace,
        "log_history": exact(trainer.state.log_history),
    }


@scenario
def prediction_without_labels(stage: Any) -> Any:
    """Several outputs, one of them ignored. (Without a collator onward makes the labels of a causal model itself.)"""
    from transformers import default_data_collator

    rows = [{key: row[key] for key in ("input_ids", "attention_mask")} for row in tokens(10)]
    args = stage.arguments(per_device_eval_batch_size=4)
    trainer = stage.trainer(gpt2(), args, data_collator=default_data_collator)
    predicted = trainer.predict(rows, ignore_keys=["past_key_values"])
    return {"predictions": exact(predicted.predictions), "labels": exact(predicted.label_ids)}


@scenario
def prediction_loss_only(stage: Any) -> Any:
    """Nothing but the loss is kept."""
    parts = {"eval_dataset": tokens(10, seed=1)}
    return stage.train(llama(), tokens(), parts, prediction_loss_only=True, eval_strategy="epoch", num_train_epochs=1)


@scenario
def best_model_and_early_stopping(stage: Any) -> Any:
    """Stops once the loss gets worse, and goes back to the best checkpoint."""
    changes = {
        "learning_rate": 0.5,
        "num_train_epochs": 12,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
    }
    stopping = stage.lib.EarlyStoppingCallback(early_stopping_patience=2)
    parts = {"eval_dataset": points(8, seed=1), "callbacks": [stopping]}
    return stage.train(Regression(), points(), parts, **changes)


@scenario
def best_model_saved(stage: Any) -> Any:
    """`save_strategy="best"`, larger is better."""
    changes = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "best", "greater_is_better": True}
    parts = {"eval_dataset": labelled(13, seed=1), "compute_metrics": accuracy}
    return stage.train(classifier(), labelled(), parts, metric_for_best_model="accuracy", **changes)


@scenario
def checkpoints_kept_in_number(stage: Any) -> Any:
    """Saved every other step, with callbacks that carry state; the oldest go."""
    stopping = stage.lib.EarlyStoppingCallback(early_stopping_patience=9)
    changes = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "eval_strategy": "steps"}
    parts = {"eval_dataset": tokens(8, seed=1), "callbacks": [stopping]}
    best = {"load_best_model_at_end": True, "eval_steps": 2}
    return stage.train(llama(), tokens(), parts, **changes, **best)


@scenario
def checkpoints_of_models_alone(stage: Any) -> Any:
    """`save_only_model` at the end of every epoch."""
    return stage.train(gpt2(), tokens(), save_strategy="epoch", save_only_model=True, num_train_epochs=2)


@scenario
def resumed(stage: Any) -> Any:
    """Stopped after an epoch and continued by another trainer; nothing in it draws random numbers within a step."""
    changes = {"save_strategy": "epoch", "num_train_epochs": 3, "per_device_train_batch_size": 4}
    stage.trainer(llama(), stage.arguments(**changes), train_dataset=tokens()).train()
    trainer = stage.trainer(llama(), stage.arguments(**changes), train_dataset=tokens())
    stage.recorder.trace.clear()
    record = stage.finish(trainer, resume_from_checkpoint=str(stage.folder / "run" / "checkpoint-7"))
    # `train_loss` after a resume covers the whole run in onward and the rest of it in transformers: docs/differences.md
    del record["train_output"]["training_loss"], record["train_output"]["metrics"]
    record["log_history"].pop()
    return record


@scenario
def intervals_as_ratios(stage: Any) -> Any:
    """Shares of the run instead of step counts."""
    changes = {"logging_steps": 0.25, "eval_strategy": "steps", "eval_steps": 0.5, "save_strategy": "steps"}
    parts = {"eval_dataset": tokens(8, seed=1)}
    return stage.train(llama(), tokens(), parts, save_steps=0.5, num_train_epochs=2, **changes)


@scenario
def logging_of_the_first_step(stage: Any) -> Any:
    """Then every third."""
    return stage.train(llama(), tokens(), logging_first_step=True, logging_steps=3)


@scenario
def logging_by_epoch(stage: Any) -> Any:
    """One line an epoch."""
    return stage.train(llama(), tokens(), logging_strategy="epoch")


@scenario
def generation(stage: Any) -> Any:
    """Seq2Seq: evaluation generates."""
    rows = [{"input_ids": row["input_ids"], "labels": row["labels"][:5]} for row in tokens()]

    def metrics(result: Any) -> dict[str, float]:
        shape, first = result.predictions.shape, float(result.predictions[:, 1:].sum())
        return {"width": float(shape[1]), "sum": first, "known": float((result.label_ids != -100).sum())}

    args = stage.arguments(
        stage.lib.Seq2SeqTrainingArguments,
        predict_with_generate=True,
        generation_max_length=7,
        generation_num_beams=2,
        eval_strategy="epoch",
        num_train_epochs=2,
    )
    parts = {"train_dataset": rows, "eval_dataset": rows[:9], "compute_metrics": metrics}
    return stage.finish(stage.trainer(t5(), args, stage.lib.Seq2SeqTrainer, **parts))


@scenario
def generation_in_prediction(stage: Any) -> Any:
    """Generation arguments given to `predict`."""
    rows = [{"input_ids": row["input_ids"], "labels": row["labels"][:5]} for row in tokens(10)]
    args = stage.arguments(stage.lib.Seq2SeqTrainingArguments, predict_with_generate=True)
    trainer = stage.trainer(t5(), args, stage.lib.Seq2SeqTrainer)
    predicted = trainer.predict(rows, max_length=6, num_beams=1)
    return {"predictions": exact(predicted.predictions), "metrics": exact(predicted.metrics)}


@scenario
def final_model_files(stage: Any) -> Any:
    """`save_model` and `save_state` after training."""
    args = stage.arguments(num_train_epochs=1)
    trainer = stage.trainer(gpt2(), args, train_dataset=tokens())
    record = stage.finish(trainer)
    folder = stage.folder / "final"
    trainer.save_model(str(folder))
    trainer.save_state()
    from safetensors.torch import load_file

    weights = {name: exact(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    return {**record, "saved": {"files": sorted(path.name for path in folder.iterdir()), "weights": weights}}


@scenario
def evaluation_with_nan(stage: Any) -> Any:
    """A loss that is not finite is not hidden in evaluation."""
    rows = points(10, seed=1)
    rows[3]["labels"] = torch.tensor(float("inf"))
    trainer = stage.trainer(Regression(), stage.arguments(), eval_dataset=rows)
    return {"metrics": exact(trainer.evaluate()), "log_history": exact(trainer.state.log_history)}
