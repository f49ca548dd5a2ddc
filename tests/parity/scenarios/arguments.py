"""Each argument by itself: what it changes in a run and in the parts of a trainer, beside the same run without it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import torch

from ..models import classifier, labelled
from ..record import exact
from .registry import scenario

STEPS = {"eval_strategy": "steps", "eval_steps": 2}
SAVES = {"save_strategy": "steps", "save_steps": 2}
BEST = {**STEPS, **SAVES, "learning_rate": 0.3, "num_train_epochs": 3, "load_best_model_at_end": True}
GROUPED = {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}

# name: (value, what must be set beside it for it to matter)
ARGUMENTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "per_device_train_batch_size": (3, {}),
    "num_train_epochs": (1.5, {}),
    "max_steps": (3, {}),
    "learning_rate": (2e-2, {}),
    "lr_scheduler_type": ("cosine", {}),
    "lr_scheduler_kwargs": ({"num_cycles": 0.3}, {"lr_scheduler_type": "cosine"}),
    "warmup_steps": (2, {}),
    "optim": ("sgd", {}),
    "optim_args": ("momentum=0.5", {"optim": "sgd"}),
    "weight_decay": (0.5, {}),
    "adam_beta1": (0.5, {}),
    "adam_beta2": (0.5, {}),
    "adam_epsilon": (1e-2, {}),
    "gradient_accumulation_steps": (2, {}),
    "max_grad_norm": (0.01, {}),
    "label_smoothing_factor": (0.3, {}),
    "bf16": (True, {}),
    "bf16_full_eval": (True, {}),
    "fp16_full_eval": (True, {}),
    "activation_checkpointing": (True, {}),
    "activation_checkpointing_kwargs": ({"every_n_layers": 2}, {"activation_checkpointing": True}),
    "gradient_checkpointing": (True, {}),
    "gradient_checkpointing_kwargs": ({"every_n_layers": 2}, {"gradient_checkpointing": True}),
    "use_cache": (True, {}),
    "neftune_noise_alpha": (5.0, {}),
    "logging_strategy": ("epoch", {}),
    "logging_steps": (2, {}),
    "logging_first_step": (True, {"logging_steps": 3}),
    "include_num_input_tokens_seen": ("all", {}),
    "log_level": ("error", {}),
    "disable_tqdm": (False, {}),
    "eval_strategy": ("epoch", {}),
    "eval_steps": (3, STEPS),
    "eval_delay": (3, STEPS),
    "per_device_eval_batch_size": (5, {}),
    "prediction_loss_only": (True, {}),
    "eval_on_start": (True, STEPS),
    "eval_do_concat_batches": (False, {}),
    "include_for_metrics": (["inputs", "loss"], {}),
    "batch_eval_metrics": (True, {}),
    "save_strategy": ("epoch", {}),
    "save_steps": (3, SAVES),
    "save_total_limit": (1, SAVES),
    "save_only_model": (True, SAVES),
    "load_best_model_at_end": (True, {**BEST, "load_best_model_at_end": False}),
    "metric_for_best_model": ("spread", BEST),
    "greater_is_better": (True, BEST),
    "seed": (1, {}),
    "data_seed": (1, {}),
    "accelerator_config": ({"even_batches": False, "non_blocking": True}, {}),
    "dataloader_drop_last": (True, {}),
    "dataloader_num_workers": (1, {}),
    "dataloader_persistent_workers": (True, {"dataloader_num_workers": 1}),
    "dataloader_prefetch_factor": (3, {"dataloader_num_workers": 1}),
    "dataloader_multiprocessing_context": ("fork", {"dataloader_num_workers": 1}),
    "dataloader_in_order": (False, {"dataloader_num_workers": 1}),
    "remove_unused_columns": (False, {}),
    "label_names": (["answer"], {}),
    "train_sampling_strategy": ("sequential", {}),
    "length_column_name": ("size", GROUPED),
    "ddp_find_unused_parameters": (False, {}),
    "ddp_bucket_cap_mb": (7, {}),
    "ddp_broadcast_buffers": (False, {}),
    "ddp_static_graph": (True, {}),
    "debug": ("underflow_overflow", {}),
    "full_determinism": (True, {}),
}


def rows(count: int, seed: int = 0) -> Any:
    """Classified sequences, with columns that a model does not take."""
    from datasets import Dataset

    samples = labelled(count, seed)
    return Dataset.from_list(
        [
            {
                "input_ids": row["input_ids"].tolist(),
                "labels": row["label"],
                "answer": row["label"],
                "size": at * 7 % count,
            }
            for at, row in enumerate(samples)
        ]
    )


def metrics(prediction: Any, compute_result: bool = False) -> dict[str, float]:
    """What the function was given, as numbers."""
    first = prediction.predictions[0]
    return {
        "rows": float(len(prediction.predictions)),
        "spread": float(abs(first.astype("float32") if hasattr(first, "astype") else first.float()).sum()),
        "inputs": float(prediction.inputs is not None),
        "losses": float(prediction.losses is not None),
        "whole": float(compute_result),
    }


class Column:
    """A collator that notes which columns reach it."""

    def __init__(self) -> None:
        """None so far."""
        self.seen: list[str] = []

    def __call__(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Only what the model takes."""
        self.seen = sorted(batch[0])
        names = [name for name in ("input_ids", "labels") if name in batch[0]]
        return {name: torch.tensor([row[name] for row in batch]) for name in names}


def parts(trainer: Any, library: str) -> dict[str, Any]:
    """What the arguments made of the parts of a trainer."""
    loader, accelerator = trainer.get_train_dataloader(), trainer.accelerator
    workers = ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "in_order")
    context = loader.multiprocessing_context
    ways = ("split_batches", "even_batches", "non_blocking")
    return {
        "loader": [[name, getattr(loader, name)] for name in workers],
        "workers start by": context if isinstance(context, str | None) else context.get_start_method(),
        "accelerator": {name: getattr(accelerator, name) for name in ways},
        "ddp": accelerator.ddp_handler.to_kwargs(),
        "level": logging.getLogger(library).getEffectiveLevel(),
        "callbacks": sorted({type(callback).__name__ for callback in trainer.callback_handler.callbacks}),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "use_cache": trainer.model.config.use_cache,
    }


def forwards(model: Any) -> list[int]:
    """A counter for each layer: how often it runs, recomputation included."""
    layers = model.bert.encoder.layer
    counts = [0] * len(layers)
    for at, layer in enumerate(layers):

        def count(*_: Any, at: int = at) -> None:
            counts[at] += 1

        layer.attention.register_forward_pre_hook(count)
    return counts


def observe(stage: Any, folder: str, **changes: Any) -> dict[str, Any]:
    """Train and evaluate with these arguments, and keep everything that they could show in."""
    stage.folder, before = stage.folder / folder, stage.folder
    levels = {log: log.level for log in map(logging.getLogger, ("onward", "transformers"))}
    stage.recorder = type(stage.recorder)()
    model, collator = classifier(), Column()
    counts = forwards(model)
    args = stage.arguments(**{"num_train_epochs": 1, "per_device_train_batch_size": 4, **changes})
    given = {"train_dataset": rows(14), "eval_dataset": rows(6, seed=1), "compute_metrics": metrics}
    trainer = stage.trainer(model, args, data_collator=collator, **given)
    try:
        made = parts(trainer, stage.lib.name)
        record = stage.finish(trainer)
        made["hooks"] = sum(len(module._forward_hooks) for module in model.modules())
        made["layers run"] = list(counts)
        return {**record, "parts": exact(made), "columns": collator.seen, "evaluated": exact(trainer.evaluate())}
    finally:
        for log, level in levels.items():
            log.setLevel(level)
        torch.use_deterministic_algorithms(False)
        stage.folder = before


def runs(stage: Any) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name of an argument, what happens with it, and what happens without it."""
    without: dict[str, dict[str, Any]] = {}
    for name, (value, beside) in ARGUMENTS.items():
        key = json.dumps(beside)
        if key not in without:
            without[key] = observe(stage, f"before-{name}", **beside)
        yield name, observe(stage, name, **{**beside, name: value}), without[key]


@scenario
def every_argument(stage: Any) -> Any:
    """All of them, one after the other, each with and without."""
    return {name: {"with": changed, "without": plain} for name, changed, plain in runs(stage)}
