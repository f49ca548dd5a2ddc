"""Trainers that the search tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onward import Trainer, TrainingArguments
from tests.tiny import RegressionData, TinyRegression


def model_init(trial: Any = None) -> TinyRegression:
    return TinyRegression(dropout=0.1, seed=0)


def make_trainer(folder: Path | str, callbacks: list[Any] | None = None, **changes: Any) -> Trainer:
    """8 steps, evaluated and saved every 2."""
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 2,
        "learning_rate": 0.01,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    parts = {key: changes.pop(key) for key in ("model_init", "compute_metrics", "trainer_class") if key in changes}
    cls = parts.pop("trainer_class", Trainer)
    return cls(
        args=TrainingArguments(output_dir=str(folder), **(settings | changes)),
        train_dataset=RegressionData(32),
        eval_dataset=RegressionData(16, seed=1),
        callbacks=callbacks,
        **({"model_init": model_init} | parts),
    )


def space(trial: Any) -> dict[str, Any]:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 0.0, 0.1),
    }
