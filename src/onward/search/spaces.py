"""What a search tries and what it minimises where the user says nothing: transformers' defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onward.errors import UsageError
from onward.types import HPSearchBackend

BATCH_SIZES = [4, 8, 16, 32, 64]


def default_objective(metrics: Mapping[str, float]) -> float:
    """The evaluation loss if there is no other metric, else the sum of all others.

    Raises:
        UsageError: there is nothing to optimise.
    """
    values = {k: v for k, v in metrics.items() if not k.endswith(("_runtime", "_per_second", "_preparation_time"))}
    values.pop("epoch", None)
    loss = values.pop("eval_loss", None)
    if values:
        return sum(values.values())
    if loss is None:
        raise UsageError(
            f"The evaluation gave nothing to optimise: got {', '.join(sorted(metrics)) or 'no metrics'}, expected "
            "eval_loss or the metrics of compute_metrics. Give the data labels, or pass compute_objective."
        )
    return loss


def default_space(backend: HPSearchBackend) -> Callable[[Any], dict[str, Any]]:
    """The space that is searched where ``hp_space`` is not given."""
    return {
        HPSearchBackend.OPTUNA: optuna_space,
        HPSearchBackend.RAY: ray_space,
        HPSearchBackend.WANDB: wandb_space,
    }[backend]


def optuna_space(trial: Any) -> dict[str, Any]:
    """Learning rate, epochs, seed and batch size, suggested by an `optuna.Trial`."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-6, 1e-4, log=True),
        "num_train_epochs": trial.suggest_int("num_train_epochs", 1, 5),
        "seed": trial.suggest_int("seed", 1, 40),
        "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", BATCH_SIZES),
    }


def ray_space(trial: Any) -> dict[str, Any]:
    """The same as a space of Ray Tune. The seed is drawn from whole numbers, since a seed is one."""
    from ray import tune

    return {
        "learning_rate": tune.loguniform(1e-6, 1e-4),
        "num_train_epochs": tune.choice(list(range(1, 6))),
        "seed": tune.randint(1, 41),
        "per_device_train_batch_size": tune.choice(BATCH_SIZES),
    }


def wandb_space(trial: Any) -> dict[str, Any]:
    """The same as the configuration of a W&B sweep."""
    return {
        "method": "random",
        "metric": {"name": "objective", "goal": "minimize"},
        "parameters": {
            "learning_rate": {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-4},
            "num_train_epochs": {"distribution": "int_uniform", "min": 1, "max": 5},
            "seed": {"distribution": "int_uniform", "min": 1, "max": 40},
            "per_device_train_batch_size": {"values": BATCH_SIZES},
        },
    }
