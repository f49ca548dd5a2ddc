"""Where samples come from and in which order."""

from __future__ import annotations

from typing import Any

import torch

from ..models import Regression, Stream, classifier, gpt2, labelled, llama, pad, points, ragged, tokenizer, tokens
from .registry import scenario


@scenario
def data_seed(stage: Any) -> Any:
    """The order has a seed of its own."""
    return stage.train(gpt2(), tokens(), data_seed=11, num_train_epochs=2)


@scenario
def group_by_length(stage: Any) -> Any:
    """Samples of similar length together."""
    parts = {"data_collator": pad}
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    return stage.train(llama(), ragged(), parts, train_sampling_strategy="group_by_length", **changes)


@scenario
def group_by_length_column(stage: Any) -> Any:
    """Lengths read from a column, evaluation grouped too."""
    from datasets import Dataset

    rows = Dataset.from_list([{**row, "size": len(row["input_ids"])} for row in ragged(30)])
    parts = {"data_collator": pad, "eval_dataset": rows.select(range(10))}
    changes = {"train_sampling_strategy": "group_by_length", "length_column_name": "size"}
    return stage.train(llama(), rows, parts, per_device_train_batch_size=2, eval_strategy="epoch", **changes)


@scenario
def sequential(stage: Any) -> Any:
    """No shuffling."""
    return stage.train(llama(), tokens(), train_sampling_strategy="sequential", num_train_epochs=2)


@scenario
def batch_rebalance(stage: Any) -> Any:
    """Batches of about equal cost, cut for accumulation."""
    changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    return stage.train(llama(), ragged(), {"data_collator": pad}, train_sampling_strategy="batch_rebalance", **changes)


@scenario
def drop_last(stage: Any) -> Any:
    """The short batch is left out of training and evaluation."""
    parts = {"eval_dataset": tokens(11, seed=1)}
    return stage.train(llama(), tokens(), parts, dataloader_drop_last=True, eval_strategy="epoch")


@scenario
def two_workers(stage: Any) -> Any:
    """Batches from worker processes."""
    changes = {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 2, "num_train_epochs": 2}
    return stage.train(gpt2(), tokens(), **changes)


@scenario
def persistent_workers(stage: Any) -> Any:
    """Workers kept between epochs, evaluation with workers as well."""
    parts = {"eval_dataset": tokens(8, seed=1)}
    changes = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "eval_strategy": "epoch"}
    return stage.train(gpt2(), tokens(), parts, num_train_epochs=2, **changes)


@scenario
def iterable_dataset(stage: Any) -> Any:
    """A stream that ends twice before `max_steps` is reached.

    Its batches divide into steps: a batch left over at the end of a stream is a step of its own in onward, while
    transformers adds its gradient to the first step of the next pass (docs/differences.md).
    """
    changes = {"max_steps": 9, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    return stage.train(llama(), Stream(tokens(24)), **changes)


@scenario
def iterable_dataset_with_evaluation(stage: Any) -> Any:
    """Streams on both sides."""
    parts = {"eval_dataset": Stream(points(10, seed=1))}
    return stage.train(Regression(), Stream(points()), parts, max_steps=6, eval_strategy="steps", eval_steps=3)


@scenario
def iterable_of_datasets(stage: Any) -> Any:
    """The streaming class of the datasets library, with a column that the model does not take."""
    from datasets import Dataset

    rows = [{"input_ids": row["input_ids"].tolist(), "text": "unused"} for row in tokens(40)]
    stream = Dataset.from_list(rows).to_iterable_dataset()
    return stage.train(llama(), stream, {"data_collator": pad}, max_steps=7)


@scenario
def datasets_with_column_removal(stage: Any) -> Any:
    """Unknown columns are dropped, `label` becomes `labels`, batches are padded with the tokenizer."""
    from datasets import Dataset

    rows = [{**row, "label": len(row["input_ids"]) % 3, "text": "unused"} for row in ragged(26)]
    parts = {"processing_class": tokenizer(), "eval_dataset": Dataset.from_list(rows[:9])}
    return stage.train(classifier(), Dataset.from_list(rows), parts, eval_strategy="epoch", num_train_epochs=2)


@scenario
def columns_kept(stage: Any) -> Any:
    """A collator that reads a column which the model does not take."""
    rows = [{**row, "weight": 2.0} for row in points()]

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        x = torch.stack([row["x"] * row["weight"] for row in batch])
        return {"x": x, "labels": torch.stack([row["labels"] for row in batch])}

    return stage.train(Regression(), rows, {"data_collator": collate}, remove_unused_columns=False)


@scenario
def collator_sees_known_columns_only(stage: Any) -> Any:
    """Column removal of a data set that is no `datasets.Dataset` happens in front of the collator."""
    seen: set[str] = set()

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        for row in batch:
            seen.update(row)
        return {key: torch.stack([row[key] for row in batch]) for key in ("x", "labels")}

    rows = [{**row, "name": "unused"} for row in points()]
    record = stage.train(Regression(), rows, {"data_collator": collate}, num_train_epochs=1)
    return {**record, "seen": sorted(seen)}


@scenario
def default_collation(stage: Any) -> Any:
    """Numbers, lists and tensors under `label` are stacked without a tokenizer."""
    return stage.train(classifier(), labelled(), num_train_epochs=2)


@scenario
def samples_drawn_at_random(stage: Any) -> Any:
    """Dropout after evaluation passes over the data: both draw from one stream."""
    parts = {"eval_dataset": tokens(20, seed=1)}
    return stage.train(gpt2(), tokens(), parts, eval_strategy="steps", eval_steps=2, num_train_epochs=2)


@scenario
def overridden_loader(stage: Any) -> Any:
    """A user's own loader, prepared by the accelerator."""

    class Own(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        def get_train_dataloader(self) -> Any:
            generator = torch.Generator().manual_seed(5)
            sampler = torch.utils.data.RandomSampler(self.train_dataset, generator=generator)
            loader = torch.utils.data.DataLoader(
                self.train_dataset, batch_size=self._train_batch_size, sampler=sampler, collate_fn=self.data_collator
            )
            return self.accelerator.prepare(loader)

    trainer = stage.trainer(gpt2(), stage.arguments(num_train_epochs=2), Own, train_dataset=tokens())
    return stage.finish(trainer)


@scenario
def overridden_sampler(stage: Any) -> Any:
    """`_get_train_sampler` as TRL overrides it."""

    class Own(stage.lib.Trainer):  # type: ignore[misc, name-defined]
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            rows = self.train_dataset if dataset is None else dataset
            return list(reversed(range(len(rows))))

    trainer = stage.trainer(gpt2(), stage.arguments(num_train_epochs=2), Own, train_dataset=tokens())
    return stage.finish(trainer)


def _counting(stage: Any, how: Any) -> Any:
    """Token counts in logs and state."""
    parts = {"data_collator": pad}
    changes = {"include_num_input_tokens_seen": how, "gradient_accumulation_steps": 2, "logging_steps": 2}
    return stage.train(llama(), ragged(), parts, per_device_train_batch_size=4, **changes)


@scenario
def tokens_seen_all(stage: Any) -> Any:
    """Pads included."""
    return _counting(stage, "all")


@scenario
def tokens_seen_true(stage: Any) -> Any:
    """`True` means all."""
    return _counting(stage, True)


@scenario
def tokens_seen_non_padding(stage: Any) -> Any:
    """Pads left out, with a tokenizer that knows them."""
    parts = {"data_collator": pad, "processing_class": tokenizer()}
    return stage.train(llama(), ragged(), parts, include_num_input_tokens_seen="non_padding")
