"""Hooks about data: loaders, samplers, columns."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from onward import engine
from onward.data import order as orders
from onward.data.columns import ColumnDroppingCollator, remove_unused, signature_columns
from onward.errors import DataError
from onward.hooks.base import TrainerBase
from onward.sharding import class_of

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader, Sampler

logger = logging.getLogger(__name__)


def _is_hf_dataset(dataset: Any) -> bool:
    return type(dataset).__module__.startswith("datasets.") and hasattr(dataset, "remove_columns")


class DataHooks(TrainerBase):
    """Loaders for training, evaluation and prediction; samplers; columns."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The training loader.

        Raises:
            DataError: there is no training data.
        """
        if self.train_dataset is None:
            raise DataError(
                "Trainer: training requires a train_dataset, got None. Pass train_dataset=, or override "
                "get_train_dataloader."
            )
        return self._get_dataloader(
            dataset=self.train_dataset,
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The evaluation loader for a data set, a key of ``self.eval_dataset``, or `None` for that itself.

        Raises:
            DataError: there is no evaluation data.
        """
        if eval_dataset is None and self.eval_dataset is None:
            raise DataError(
                "Trainer: evaluation requires an eval_dataset, got None. Pass it here or to the constructor."
            )
        key = eval_dataset if isinstance(eval_dataset, str) else "eval"
        kept = getattr(self, "_eval_dataloaders", {})
        if self.args.dataloader_persistent_workers and key in kept:
            # A new loader at each evaluation would leave its workers behind.
            known: DataLoader[Any] = kept[key]
            return known
        if isinstance(eval_dataset, str):
            dataset = orders.named_set(self.eval_dataset, eval_dataset)
        else:
            dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        loader = self._get_dataloader(
            dataset=dataset,
            description="Evaluation",
            batch_size=self.args.eval_batch_size,
            sampler_fn=self._get_eval_sampler,
            dataloader_key=key,
        )
        if self.args.dataloader_persistent_workers:
            self._eval_dataloaders = {**kept, key: loader}
        return loader

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """The loader that `predict` reads `test_dataset` with."""
        return self._get_dataloader(
            dataset=test_dataset,
            description="test",
            batch_size=self.args.eval_batch_size,
            sampler_fn=self._get_eval_sampler,
        )

    def num_examples(self, dataloader: Any) -> int:
        """Samples that a loader gives per epoch, estimated from its number of batches where its data has no length."""
        try:
            dataset = dataloader.dataset
            # accelerate's shard of an iterable data set counts only its own part
            return len(dataset.dataset) if type(dataset).__name__ == "IterableDatasetShard" else len(dataset)
        except (NameError, AttributeError, TypeError):
            return len(dataloader) * self.args.per_device_train_batch_size

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[int, int, int, float, int, int, int]:
        """The counts of a run over `dataloader`.

        Returns:
            epochs that the run enters, optimizer steps per epoch, samples per epoch, samples of the whole run, samples
            per optimizer step over all processes, micro-batches per epoch and process, optimizer steps of the run. Of
            data without a length, an epoch is the whole run and the number of epochs is `sys.maxsize`.

        Raises:
            UsageError: the data is empty, or has no length and `max_steps` is not set.
        """
        from onward.loop.feeding import count_run

        total = self.get_total_train_batch_size(args)
        plan = count_run(self, dataloader, args)
        samples = plan.max_steps * total if args.max_steps > 0 else plan.num_train_samples
        epochs, per_epoch = plan.num_epochs, plan.steps_per_epoch
        return epochs, per_epoch, plan.num_examples, samples, total, plan.batches_per_epoch, plan.max_steps

    def get_total_train_batch_size(self, args: Any) -> int:
        """Samples per optimizer step over all processes; the size of micro-batches that fits does not change it."""
        steps = int(args.gradient_accumulation_steps) * max(1, int(args.world_size))
        return (int(args.train_batch_size) if args.auto_find_batch_size else self._train_batch_size) * steps

    def get_tp_size(self) -> int:
        """Size of tensor-parallel groups: 1, onward has none."""
        return 1

    def get_cp_size(self) -> int:
        """Size of context-parallel groups: 1, onward has none."""
        return 1

    def get_sp_size(self) -> int:
        """Size of sequence-parallel groups: 1, onward has none."""
        return 1

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Any], Sampler[Any] | None] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader[Any]:
        """Build a loader; the training loader is onward's own, the others go through accelerate."""
        from onward.loop.feeding import evaluation_loader, training_loader

        if _is_hf_dataset(dataset) and orders.has_length(dataset):
            dataset = self._remove_unused_columns(dataset, description=description)
            collator: Any = self.data_collator
        else:
            collator = self._get_collator_with_removed_columns(self.data_collator, description=description)
        build = training_loader if is_training else evaluation_loader
        loader: DataLoader[Any] = build(self, dataset, collator, batch_size, sampler_fn)
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        """The order of training samples, by `train_sampling_strategy`; `None` for data without a length."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if dataset is None or not orders.has_length(dataset):
            return None
        from onward.loop.feeding import train_sampler

        return train_sampler(self, dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[Any] | None:
        """The order of evaluation samples; `None` for data without a length, and where accelerate shards it."""
        if eval_dataset is None or not orders.has_length(eval_dataset):
            return None
        from onward.loop.feeding import eval_sampler

        return eval_sampler(self, eval_dataset)

    def _set_signature_columns_if_needed(self) -> None:
        """Fill `_signature_columns` with what the model's forward takes; subclasses write it themselves."""
        if self._signature_columns is None:
            from onward.model_setup import without_peft

            # The forward of a wrapper (torch.compile, DataParallel) takes anything, and names nothing.
            base = without_peft(engine.unwrapped(self.accelerator, self.model))
            self._signature_columns = signature_columns(base.forward, self.label_names)

    def _remove_unused_columns(self, dataset: Any, description: str | None = None) -> Any:
        """Drop the columns of a `datasets.Dataset` that the model does not take."""
        if not self.args.remove_unused_columns:
            return dataset
        self._set_signature_columns_if_needed()
        return remove_unused(dataset, self._signature_columns or [], class_of(self.model).__name__, description)

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        """Wrap a collator so that it drops the keys that the model does not take."""
        if not self.args.remove_unused_columns:
            return data_collator
        self._set_signature_columns_if_needed()
        return ColumnDroppingCollator(
            data_collator, self._signature_columns or [], class_of(self.model).__name__, description
        )

    def batch_at(self, step: int) -> list[Any]:
        """The collated micro-batches of this process in optimizer step `step` (the first is 1), without training.

        For looking at what made the loss jump. Steps are counted in the data: where a rollback left data behind, they
        run ahead of ``global_step``. Random numbers drawn by the data set are those of the run.
        """
        from onward.loop.feeding import batch_at

        return batch_at(self, step)

    def _indices_at_work(self, model: nn.Module) -> list[int] | None:
        """Where the samples of the micro-batch that is trained on stand in the data set; None where nobody knows."""
        if self.feed is None or not model.training:  # in evaluation the feed stands at another micro-batch
            return None
        return self.feed.indices_of(self.current_gradient_accumulation_steps - 1 - self._micro_batch)
