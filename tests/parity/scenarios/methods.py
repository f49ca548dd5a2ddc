"""Scripts whose trainer, sampler, callback or stream does something of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..models import VOCABULARY, Regression, classifier, labelled, points, tokens
from ..record import exact
from .registry import scenario
from .scripts import bert


class TwoHeads(nn.Module):
    """Two tasks on one trunk; forward gives both losses."""

    def __init__(self) -> None:
        """Weights come from a fixed seed."""
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(8, 2)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: torch.Tensor, value: torch.Tensor, kind: torch.Tensor) -> dict[str, torch.Tensor]:
        """x: (batch, 4); value, kind: (batch,)."""
        hidden = self.dropout(torch.relu(self.trunk(x)))
        value_loss = nn.functional.mse_loss(self.first(hidden).squeeze(-1), value)
        kind_loss = nn.functional.cross_entropy(self.second(hidden), kind)
        return {"value_loss": value_loss, "kind_loss": kind_loss, "logits": self.second(hidden)}


@scenario
def script_several_losses(stage: Any) -> Any:
    """Two tasks whose losses are logged from within `compute_loss`, in training and evaluation."""

    class Both(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            outputs = model(**inputs)
            loss = outputs["value_loss"] + 0.5 * outputs["kind_loss"]
            if model.training and self.state.global_step % self.args.logging_steps == 0:
                self.log({"value_loss": outputs["value_loss"].item(), "kind_loss": outputs["kind_loss"].item()})
            return (loss, {"loss": loss, "logits": outputs["logits"]}) if return_outputs else loss

    rows = [{"x": row["x"], "value": row["labels"], "kind": int(row["labels"] > 0)} for row in points()]
    args = stage.arguments(num_train_epochs=2, logging_steps=2, label_names=["value", "kind"], eval_strategy="epoch")
    parts = {
        "train_dataset": rows,
        "eval_dataset": rows[:9],
        "compute_metrics": lambda p: {"two": float(len(p.label_ids))},
    }
    return stage.finish(stage.trainer(TwoHeads(), args, Both, **parts))


@scenario
def script_taught(stage: Any) -> Any:
    """Distillation, with arguments and a trainer that have keywords of their own."""

    class Settings(stage.lib.TrainingArguments):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, alpha: float = 0.5, temperature: float = 2.0, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.alpha, self.temperature = alpha, temperature

    class Taught(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, teacher_model: Any = None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.teacher = teacher_model
            self._move_model_to_device(self.teacher, self.model.device)
            self.teacher.eval()

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            outputs = model(**inputs)
            with torch.no_grad():
                goal = self.teacher(**inputs).logits
            heat = self.args.temperature
            soft = nn.functional.kl_div(
                torch.log_softmax(outputs.logits / heat, -1), torch.softmax(goal / heat, -1), reduction="batchmean"
            )
            loss = self.args.alpha * outputs.loss + (1 - self.args.alpha) * heat**2 * soft
            return (loss, outputs) if return_outputs else loss

    teacher = classifier()
    torch.manual_seed(3)
    teacher.classifier.reset_parameters()
    args = stage.arguments(Settings, alpha=0.3, num_train_epochs=2, eval_strategy="epoch", label_smoothing_factor=0.0)
    parts = {"train_dataset": labelled(), "eval_dataset": labelled(9, seed=1), "teacher_model": teacher}
    return stage.finish(stage.trainer(bert("SequenceClassification", num_labels=3), args, Taught, **parts))


class Embedder(nn.Module):
    """Embeds a sequence; it has no loss of its own."""

    def __init__(self) -> None:
        """Weights come from a fixed seed."""
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.dropout = nn.Embedding(VOCABULARY, 8), nn.Dropout(0.2)

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """input_ids: (batch, length)."""
        return {"embedding": nn.functional.normalize(self.dropout(self.embedding(input_ids)).mean(1), dim=-1)}


@scenario
def script_pairs(stage: Any) -> Any:
    """Contrastive: two forwards in a step, and an evaluation that has embeddings and no loss."""

    class Pairs(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
            first, second = (model(input_ids=inputs[name])["embedding"] for name in ("anchor", "positive"))
            scores = first @ second.T / 0.1
            loss = nn.functional.cross_entropy(scores, torch.arange(len(scores)))
            return (loss, {"first": first, "second": second}) if return_outputs else loss

        def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
            with torch.no_grad():
                first, second = (model(input_ids=inputs[name])["embedding"] for name in ("anchor", "positive"))
            return None, (first, second), torch.arange(len(first))

    rows = [{"anchor": row["input_ids"], "positive": row["input_ids"].flip(0)} for row in tokens(24)]

    def closeness(pair: Any) -> dict[str, float]:
        first, second = pair.predictions
        return {"closeness": float((first * second).sum(-1).mean())}

    args = stage.arguments(
        num_train_epochs=2, remove_unused_columns=False, eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True, metric_for_best_model="closeness", greater_is_better=True,
    )  # fmt: skip
    parts = {"train_dataset": rows, "eval_dataset": rows[:9], "compute_metrics": closeness}
    return stage.finish(stage.trainer(Embedder(), args, Pairs, **parts))


@scenario
def script_weighted_draw(stage: Any) -> Any:
    """Rare classes drawn more often, by a sampler that takes torch's own generator."""
    from torch.utils.data import WeightedRandomSampler

    class Balanced(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        def _get_train_sampler(self, *_: Any) -> Any:
            weights = [1.0 + row["label"] for row in self.train_dataset]
            return WeightedRandomSampler(weights, num_samples=len(weights), replacement=True)

    args = stage.arguments(num_train_epochs=2)
    return stage.finish(stage.trainer(classifier(), args, Balanced, train_dataset=labelled()))


@scenario
def script_weighted_loader(stage: Any) -> Any:
    """The same as a loader written by hand, dropped last batch and all."""
    from torch.utils.data import DataLoader, WeightedRandomSampler

    class Balanced(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        def get_train_dataloader(self) -> Any:
            weights = [1.0 + row["label"] for row in self.train_dataset]
            sampler = WeightedRandomSampler(weights, num_samples=30, replacement=True)
            return DataLoader(
                self.train_dataset, batch_size=self.args.train_batch_size, sampler=sampler,
                collate_fn=self.data_collator, drop_last=True, num_workers=self.args.dataloader_num_workers,
            )  # fmt: skip

    args = stage.arguments(num_train_epochs=2)
    return stage.finish(stage.trainer(classifier(), args, Balanced, train_dataset=labelled()))


@scenario
def script_rates_by_layer(stage: Any) -> Any:
    """Lower layers learn more slowly: one group of parameters for each."""

    class ByLayer(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        def create_optimizer(self) -> Any:
            decayed = self.get_decay_parameter_names(self.model)
            groups = [
                {
                    "params": [weight],
                    "lr": self.args.learning_rate * (0.5 if "encoder.layer.0" in name else 1.0),
                    "weight_decay": self.args.weight_decay if name in decayed else 0.0,
                }
                for name, weight in self.model.named_parameters()
                if weight.requires_grad
            ]
            kind, options = type(self).get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(groups, **options)
            return self.optimizer

    args = stage.arguments(num_train_epochs=2, weight_decay=0.1, lr_scheduler_type="cosine", warmup_steps=0.2)
    trainer = stage.trainer(classifier(), args, ByLayer, train_dataset=labelled())
    record = stage.finish(trainer)
    return {**record, "rates": exact(trainer.get_learning_rates()), "trained": trainer.get_num_trainable_parameters()}


@scenario
def script_unfrozen_later(stage: Any) -> Any:
    """A frozen encoder joins the optimizer in the second epoch."""

    class Unfreeze(stage.lib.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_epoch_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.epoch is not None and round(state.epoch) == 1:
                frozen = [weight for weight in model.hidden.parameters() if not weight.requires_grad]
                for weight in frozen:
                    weight.requires_grad_(True)

    model = Regression(dropout=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.hidden.requires_grad_(False)
    parts = {"callbacks": [Unfreeze()], "optimizers": (optimizer, None)}
    return stage.train(model, points(), parts, num_train_epochs=3)


class Shared(torch.utils.data.IterableDataset[dict[str, Any]]):
    """A stream that its workers share out."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        """Keep `rows`."""
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """This worker's part."""
        worker = torch.utils.data.get_worker_info()
        yield from self.rows[worker.id :: worker.num_workers] if worker else self.rows


@scenario
def script_stream_of_workers(stage: Any) -> Any:
    """A stream, two workers, several passes."""
    changes = {"max_steps": 9, "per_device_train_batch_size": 4, "dataloader_num_workers": 2}
    return stage.train(Regression(dropout=0.1), Shared(points(24)), **changes)


@scenario
def script_stream_shuffled(stage: Any) -> Any:
    """Streaming `datasets`: generated, mapped, shuffled anew each pass."""
    from datasets import IterableDataset

    def generate(shards: list[int]) -> Iterator[dict[str, Any]]:
        for shard in shards:
            for row in points(8, seed=shard):
                yield {"x": row["x"].tolist(), "labels": float(row["labels"]), "shard": shard}

    stream = IterableDataset.from_generator(generate, gen_kwargs={"shards": [0, 1, 2]})
    stream = stream.map(lambda row: {"x": [2 * value for value in row["x"]]}).shuffle(seed=3, buffer_size=6)
    changes = {"max_steps": 10, "per_device_train_batch_size": 4}
    return stage.train(Regression(dropout=0.1), stream.with_format("torch"), **changes)


class Harder(torch.utils.data.Dataset[dict[str, Any]]):
    """Its samples depend on a level."""

    def __init__(self) -> None:
        """The easiest."""
        self.rows, self.level = points(), 1.0

    def __len__(self) -> int:
        """Always the same."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Scaled."""
        return {**self.rows[index], "x": self.rows[index]["x"] * self.level}


@scenario
def script_curriculum(stage: Any) -> Any:
    """A callback makes the data harder at each epoch."""

    class Raise(stage.lib.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_epoch_begin(
            self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any
        ) -> None:
            data.level = 1.0 + float(state.epoch or 0)

    data = Harder()
    return stage.train(Regression(), data, {"callbacks": [Raise()]}, num_train_epochs=3)


@scenario
def script_moving_average(stage: Any) -> Any:
    """Averaged weights, kept in the checkpoint folder at `on_save` and read at the beginning of a resumed run."""

    class Average(stage.lib.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            self.weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
            kept = Path(args.output_dir) / f"checkpoint-{state.global_step}" / "average.pt"
            if kept.exists():
                self.weights = torch.load(kept, weights_only=True)

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            for name, weight in model.state_dict().items():
                self.weights[name].lerp_(weight, 0.3)

        def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            torch.save(self.weights, Path(args.output_dir) / f"checkpoint-{state.global_step}" / "average.pt")

        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            model.load_state_dict(self.weights)

    changes = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2}
    return stage.train(Regression(dropout=0.2), points(), {"callbacks": [Average()]}, **changes)


@scenario
def script_noisy_gradients(stage: Any) -> Any:
    """Noise on the gradients, drawn in `training_step`."""

    class Noisy(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            loss = super().training_step(model, inputs, num_items_in_batch)
            for weight in model.parameters():
                if weight.grad is not None:
                    weight.grad.add_(torch.randn_like(weight.grad) * 0.01)
            return loss

    args = stage.arguments(num_train_epochs=2, gradient_accumulation_steps=2, per_device_train_batch_size=4)
    return stage.finish(stage.trainer(Regression(dropout=0.2), args, Noisy, train_dataset=points()))


@scenario
def script_folds(stage: Any) -> Any:
    """Cross-validation: a new trainer for each fold, in one process."""
    from torch.utils.data import Subset

    rows, found = labelled(24), []
    for fold in range(3):
        inside = [at for at in range(24) if at % 3 != fold]
        outside = [at for at in range(24) if at % 3 == fold]
        args = stage.arguments(
            output_dir=str(stage.folder / f"fold-{fold}"), num_train_epochs=1, eval_strategy="epoch", seed=fold
        )
        stage.recorder = type(stage.recorder)()
        trainer = stage.trainer(
            classifier(), args, train_dataset=Subset(rows, inside), eval_dataset=Subset(rows, outside)
        )
        record = stage.finish(trainer)
        found.append({**record, "score": exact(trainer.evaluate(Subset(rows, outside)))})
    return {"folds": found}
