"""Fine-tune a classifier: a small vision transformer learns handwritten digits, then is taught one it never saw.

    python examples/classify.py

The data are scikit-learn's 1,797 digits of 8 x 8 pixels, which come with that package. First the model learns the
digits 0 to 8; then the checkpoint is loaded again and fine-tuned on all ten, with early stopping and the best
checkpoint at the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict
from sklearn.datasets import load_digits
from transformers import ViTConfig, ViTForImageClassification

from onward import EarlyStoppingCallback, EvalPrediction, Trainer, TrainingArguments, set_seed


def load_data(digits: range) -> DatasetDict:
    """Images (1, 8, 8) from 0 to 1 and labels of the wanted digits, four fifths for training."""
    data = load_digits()
    keep = np.isin(data.target, list(digits))
    images = (data.images[keep, None] / 16).astype(np.float32)
    whole = Dataset.from_dict({"pixel_values": list(images), "labels": data.target[keep]}).with_format("torch")
    return whole.train_test_split(test_size=0.2, seed=0)


def build_model() -> ViTForImageClassification:
    """A vision transformer over sixteen patches of 2 x 2 pixels."""
    return ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=2,
            num_channels=1,
            num_labels=10,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    )


def accuracy(result: EvalPrediction) -> dict[str, float]:
    """Share of images that were told right, of all and of the nines."""
    right = result.predictions.argmax(axis=-1) == result.label_ids
    nines = right[result.label_ids == 9]
    return {"accuracy": float(right.mean()), "accuracy_of_nines": float(nines.mean()) if len(nines) else 0.0}


def train(model: ViTForImageClassification, data: DatasetDict, output_dir: Path, epochs: float) -> Trainer:
    """Train with an evaluation after each epoch; the best epoch's weights are the ones that stay."""
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output_dir),
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            learning_rate=2e-3,
            warmup_steps=20,
            label_smoothing_factor=0.1,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            report_to="none",
        ),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        compute_metrics=accuracy,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=4)],
    )
    trainer.train()
    trainer.save_model()
    return trainer


def main() -> None:
    """Train on nine digits, fine-tune on ten, and compare."""
    parser = argparse.ArgumentParser(description="Fine-tune a digit classifier.")
    parser.add_argument("--epochs", type=float, default=12)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/classify"))
    options = parser.parse_args()

    set_seed(0)
    train(build_model(), load_data(range(9)), options.output_dir / "nine-digits", options.epochs)

    ten = load_data(range(10))
    model = ViTForImageClassification.from_pretrained(options.output_dir / "nine-digits")
    trainer = train(model, ten, options.output_dir / "ten-digits", options.epochs)
    metrics = trainer.evaluate()
    print(f"accuracy {metrics['eval_accuracy']:.3f}, of nines {metrics['eval_accuracy_of_nines']:.3f}")


if __name__ == "__main__":
    main()
