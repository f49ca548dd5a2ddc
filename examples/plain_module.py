"""Train a plain `nn.Module` with nothing from transformers in sight.

    python examples/plain_module.py

All that a model needs is a forward that takes the batch by name and returns a dictionary with ``loss``.
"""

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from onward import EvalPrediction, Trainer, TrainingArguments, set_seed


class Wave(Dataset[dict[str, Tensor]]):
    """Points of ``sin(2 pi x) / (1 + x)`` for x from 0 to 3, with a little noise."""

    def __init__(self, size: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = 3 * torch.rand(size, 1, generator=generator)
        noise = 0.02 * torch.randn(size, 1, generator=generator)
        self.y = torch.sin(2 * math.pi * self.x) / (1 + self.x) + noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.y[index]}


class Regressor(nn.Module):
    """A small network from (n, 1) to (n, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return the prediction and, where labels are given, the mean squared error."""
        prediction = self.layers(x)
        if labels is None:
            return {"logits": prediction}
        return {"loss": nn.functional.mse_loss(prediction, labels), "logits": prediction}


def largest_error(result: EvalPrediction) -> dict[str, float]:
    """The distance between curve and prediction where it is largest."""
    return {"largest_error": float(abs(result.predictions - result.label_ids).max())}


def main() -> None:
    """Train, evaluate, predict."""
    parser = argparse.ArgumentParser(description="Fit a curve with a plain nn.Module.")
    parser.add_argument("--epochs", type=float, default=30)
    parser.add_argument("--output-dir", default="runs/plain-module")
    options = parser.parse_args()

    set_seed(0)
    trainer = Trainer(
        model=Regressor(),
        args=TrainingArguments(
            output_dir=options.output_dir,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=32,
            learning_rate=1e-2,
            lr_scheduler_type="cosine",
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            logging_steps=100,
            report_to="none",
        ),
        train_dataset=Wave(1024, seed=0),
        eval_dataset=Wave(256, seed=1),
        compute_metrics=largest_error,
    )
    trainer.train()
    metrics = trainer.evaluate()
    print(f"eval loss {metrics['eval_loss']:.5f}, largest error {metrics['eval_largest_error']:.3f}")


if __name__ == "__main__":
    main()
