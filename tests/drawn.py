"""Training arguments drawn at random, such that they fit together: combinations that nobody thought of."""

from __future__ import annotations

import random
from typing import Any

LEFT = object()
"""The argument is left at its default."""

CHOICES: dict[str, tuple[Any, ...]] = {
    "num_train_epochs": (0.5, 1, 1.7, 3),
    "max_steps": (LEFT, LEFT, 1, 5, 13),
    "per_device_train_batch_size": (1, 3, 4, 8),
    "per_device_eval_batch_size": (1, 3, 4),
    "gradient_accumulation_steps": (LEFT, LEFT, 2, 3, 5),
    "learning_rate": (1e-3, 1e-2),
    "weight_decay": (LEFT, 0.1),
    "max_grad_norm": (LEFT, LEFT, 0.0, 0.1, 10.0),
    "adam_beta1": (LEFT, 0.8),
    "optim": (LEFT, "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"),
    "warmup_steps": (LEFT, LEFT, 1, 2, 0.2),
    "bf16": (LEFT, LEFT, LEFT, True),
    "logging_strategy": ("steps", "steps", "epoch", "no"),
    "logging_steps": (1, 2, 3, 0.3),
    "logging_first_step": (LEFT, True),
    "eval_strategy": ("no", "steps", "epoch"),
    "eval_steps": (1, 2, 0.4),
    "eval_delay": (LEFT, LEFT, 1, 2),
    "eval_on_start": (LEFT, LEFT, True),
    "eval_accumulation_steps": (LEFT, 1, 2),
    "save_strategy": ("no", "steps", "epoch", "best"),
    "save_steps": (1, 2, 0.4),
    "save_total_limit": (LEFT, LEFT, 1, 2, 3),
    "load_best_model_at_end": (LEFT, True),
    "greater_is_better": (LEFT, LEFT, True, False),
    "prediction_loss_only": (LEFT, LEFT, LEFT, True),
    "dataloader_drop_last": (LEFT, LEFT, True),
    "dataloader_num_workers": (LEFT,) * 6 + (1, 2),
    "seed": (LEFT, 7),
    "data_seed": (LEFT, LEFT, 3),
    "train_sampling_strategy": (LEFT, LEFT, LEFT, "sequential"),
    "torch_empty_cache_steps": (LEFT, LEFT, LEFT, 2),
}

SCHEDULES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("linear", {}),
    ("cosine", {}),
    ("constant", {}),
    ("constant_with_warmup", {}),
    ("polynomial", {}),
    ("inverse_sqrt", {}),
    ("cosine_with_restarts", {}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1, "warmup_lr_rate": 0.2}),
    ("warmup_stable_decay", {"num_decay_steps": 2}),
    ("reduce_lr_on_plateau", {}),
)


def drawn(chance: random.Random) -> dict[str, Any]:
    """Arguments for a run with at least eight samples to train on and four to evaluate."""
    settings = {name: chance.choice(choices) for name, choices in CHOICES.items()}
    settings = {name: value for name, value in settings.items() if value is not LEFT}
    evaluates, saves = settings["eval_strategy"], settings["save_strategy"]
    if evaluates == "no":
        for name in ("load_best_model_at_end", "greater_is_better", "eval_on_start"):
            settings.pop(name, None)
    if evaluates == "no" and saves == "best":
        settings["save_strategy"] = "epoch"
    if saves == "best" or evaluates != saves:
        settings.pop("load_best_model_at_end", None)
    if settings.get("load_best_model_at_end"):
        settings["save_steps"] = settings["eval_steps"]
    if evaluates != "no":
        settings["metric_for_best_model"] = "eval_loss"
    offered = [pair for pair in SCHEDULES if evaluates != "no" or pair[0] != "reduce_lr_on_plateau"]
    settings["lr_scheduler_type"], settings["lr_scheduler_kwargs"] = chance.choice(offered)
    if settings["lr_scheduler_type"] == "polynomial":  # which divides by the steps behind the warm-up
        settings.pop("warmup_steps", None)
    return settings
