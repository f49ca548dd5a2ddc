"""Search for the hyperparameters of a small digit classifier: 12 trials with Optuna.

    python examples/search.py --trials 12 --output-dir search-run

The digits come with scikit-learn, so nothing is downloaded. Stop it whenever you like and start it again with the same
command: the study is finished to 12 trials in total, and a trial that was cut off goes on from its last checkpoint.
Afterwards look at the plots with ``onward search-report search-run``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn

from onward import EvalPrediction, Trainer, TrainingArguments


class Digits(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Images of 8 x 8 pixels as ``{"pixels": (64,) float, "labels": () int64}``; every fifth one is for evaluation."""

    def __init__(self, evaluation: bool) -> None:
        data = load_digits()
        chosen = (np.arange(len(data.target)) % 5 == 0) == evaluation
        self.pixels = torch.tensor(data.data[chosen] / 16, dtype=torch.float32)
        self.labels = torch.tensor(data.target[chosen])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixels": self.pixels[index], "labels": self.labels[index]}


class Classifier(nn.Module):
    """One hidden layer, whose width and dropout are searched."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 10))

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Logits of shape (n, 10), and the loss where there are labels."""
        logits = self.layers(pixels)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def model_init(trial: Any) -> Classifier:
    """A new model for each trial; what is named ``model.…`` in the space is for this function."""
    chosen = trial.params if trial is not None else {}
    return Classifier(chosen.get("model.width", 32), chosen.get("model.dropout", 0.0))


def hp_space(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 3e-2, log=True),
        "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [16, 32, 64]),
        "lr_scheduler_type": trial.suggest_categorical("lr_scheduler_type", ["linear", "cosine"]),
        "model.width": trial.suggest_int("model.width", 16, 128, log=True),
        "model.dropout": trial.suggest_float("model.dropout", 0.0, 0.5),
    }


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(axis=1) == prediction.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--output-dir", type=Path, default=Path("search-run"))
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)

    trainer = Trainer(
        model_init=model_init,
        args=TrainingArguments(
            output_dir=str(options.output_dir),
            num_train_epochs=options.epochs,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            logging_strategy="epoch",
            per_device_eval_batch_size=256,
            report_to="none",
        ),
        train_dataset=Digits(evaluation=False),
        eval_dataset=Digits(evaluation=True),
        compute_metrics=accuracy,
    )
    best = trainer.hyperparameter_search(
        hp_space,
        n_trials=options.trials,
        direction="maximize",
        backend="optuna",
        storage=f"sqlite:///{options.output_dir / 'study.db'}",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=60),
    )
    assert not isinstance(best, list)  # one direction, one best run

    trainer.load_best_trial()
    score = trainer.evaluate()["eval_accuracy"]
    states = [each.state.name.lower() for each in best.run_summary.trials]
    print(f"\n{len(states)} trials: " + ", ".join(f"{states.count(name)} {name}" for name in sorted(set(states))))
    print(f"best: trial {best.run_id}, accuracy {best.objective:.4f}, again from its checkpoint {score:.4f}")
    for name, value in best.hyperparameters.items():
        print(f"  {name} = {value:.4g}" if isinstance(value, float) else f"  {name} = {value}")


if __name__ == "__main__":
    main()
