"""Ways to train that a resume must not be able to tell from a run that was never stopped."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from onward import EarlyStoppingCallback, ExportableState, Trainer, TrainerCallback, TrainingArguments
from tests.tiny import RegressionData, TinyRegression

SIZE = 22  # with batches of 4 the last one is short


class Augmented(Dataset[dict[str, Tensor]]):
    """Adds noise drawn from one of the global generators, or from two of its own."""

    def __init__(self, source: str, size: int = SIZE) -> None:
        self.data, self.source = RegressionData(size), source
        if source == "its own":
            self.own, self.other = np.random.default_rng(4), random.Random(4)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self.data[index]
        return {**sample, "x": sample["x"] + self.noise()}

    def noise(self) -> Tensor:
        """Four numbers."""
        if self.source == "its own":
            return torch.tensor([*self.own.standard_normal(3), self.other.random()], dtype=torch.float32)
        if self.source == "torch":
            return torch.randn(4)
        if self.source == "numpy":
            return torch.tensor(np.random.randn(4), dtype=torch.float32)
        return torch.tensor([random.gauss(0, 1) for _ in range(4)])


SHARED = np.random.default_rng(6)


def draws_from_global(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collates with noise from a generator of the script."""
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    return {**batch, "x": batch["x"] + torch.tensor(SHARED.standard_normal(4), dtype=torch.float32)}


class Deep(Augmented):
    """Draws from a generator that an attribute of any name keeps, and that is new in each epoch or made when needed."""

    def __init__(self, kind: str) -> None:
        super().__init__("none")
        self.kind, self.augmentations = kind, {"noise": Augmented("its own")}

    def set_epoch(self, epoch: int) -> None:
        """A new generator."""
        if self.kind == "epoch":
            self.augmentations["noise"].own = np.random.default_rng(epoch)

    def noise(self) -> Tensor:
        if self.kind == "lazy" and not hasattr(self, "late"):
            self.late = np.random.default_rng(3)
        if self.kind == "lazy":
            return torch.tensor(self.late.standard_normal(4), dtype=torch.float32)
        return self.augmentations["noise"].noise()


class Stream(IterableDataset[dict[str, Tensor]]):
    """The same as a stream, split over workers."""

    def __init__(self, size: int = SIZE) -> None:
        self.data = Augmented("torch", size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = get_worker_info()
        start, step = (0, 1) if info is None else (info.id, info.num_workers)
        for index in range(start, len(self.data), step):
            yield self.data[index]


class StatefulStream(IterableDataset[dict[str, Tensor]]):
    """The same with a state, so that nothing is replayed."""

    def __init__(self, size: int = SIZE) -> None:
        self.data, self.at, self.loaded = Augmented("torch", size), 0, False

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = get_worker_info()
        start, step = (0, 1) if info is None else (info.id, info.num_workers)
        self.at, self.loaded = self.at if self.loaded else start, False
        while self.at < len(self.data):
            index, self.at = self.at, self.at + step
            yield self.data[index]

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.at, self.loaded = state["at"], True


class OwnLoader(Trainer):
    """Builds its loader as scripts do that need something special."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        return self.accelerator.prepare(DataLoader(self.train_dataset, batch_size=4, shuffle=True))


class PlainLoader(Trainer):
    """Builds a loader of torch and hands it over as it is."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_dataset, batch_size=4, shuffle=True, num_workers=0)


class GeneratorLoader(Trainer):
    """Shuffles with a generator of the user's, which goes on from epoch to epoch."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_dataset, 4, shuffle=True, generator=torch.Generator().manual_seed(7))


class OwnSampler(Sampler[int]):
    """An order from generators of its own."""

    def __init__(self, size: int) -> None:
        self.size, self.python, self.numpy = size, random.Random(3), np.random.default_rng(3)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.size))
        self.python.shuffle(order)
        self.numpy.shuffle(order)
        return iter(order)


class SamplerLoader(Trainer):
    """Has a sampler of the user's."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_dataset, 4, sampler=OwnSampler(len(self.train_dataset)))


class NumpyRates(Trainer):
    """A schedule of the user's, in numpy: its state holds numbers of numpy."""

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        def curve(step: int) -> Any:
            return 0.5 * (1 + np.cos(np.pi * step / num_training_steps))

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, curve)
        return self.lr_scheduler


class MovingAverage(TrainerCallback, ExportableState):
    """A callback whose state is logged."""

    def __init__(self) -> None:
        self.mean = 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.mean = 0.9 * self.mean + 0.1 * logs["loss"]
            logs["mean"] = self.mean

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"mean": self.mean}}


class DrawsInEvaluation(Trainer):
    """Draws from every global generator while it evaluates."""

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        torch.rand(3), random.random(), np.random.rand(2)
        return super().prediction_step(*args, **kwargs)


@dataclass
class Scenario:
    """One way to train."""

    arguments: dict[str, Any] = field(default_factory=dict)
    data: Callable[[], Any] = RegressionData
    trainer: type[Trainer] = Trainer
    dropout: float = 0.0
    extra: Callable[[], dict[str, Any]] = dict
    resumed_arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments that differ when the run is resumed."""

    def make(self, folder: Path, resumed: bool = False) -> Trainer:
        """A trainer that has not trained yet."""
        settings: dict[str, Any] = {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "seed": 5,
        }
        settings |= self.arguments | (self.resumed_arguments if resumed else {})
        return self.trainer(
            TinyRegression(self.dropout),
            TrainingArguments(output_dir=str(folder), **settings),
            train_dataset=self.data(),
            **self.extra(),
        )


def lengths() -> list[dict[str, Tensor]]:
    """Samples with a key to group them by."""
    data = RegressionData(SIZE)
    return [{**data[i], "input_ids": torch.arange(1 + i * 7 % 11)} for i in range(SIZE)]


def stack_without_ids(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Leaves the key to group by out."""
    return {key: torch.stack([s[key] for s in samples]) for key in ("x", "labels")}


def hf_stream(shuffle: bool) -> Any:
    """A stream of the datasets library, whose shuffle buffer cannot be saved."""
    import datasets

    data = RegressionData(SIZE)
    rows = {"x": data.x.tolist(), "labels": data.labels.tolist()}
    stream = datasets.Dataset.from_dict(rows).to_iterable_dataset(num_shards=2).with_format("torch")
    return stream.shuffle(seed=3, buffer_size=6) if shuffle else stream


def with_evaluation() -> dict[str, Any]:
    """An evaluation set."""
    return {"eval_dataset": RegressionData(8, seed=1)}


def with_patience() -> dict[str, Any]:
    """Early stopping that gives up after two evaluations without enough progress."""
    return with_evaluation() | {"callbacks": [EarlyStoppingCallback(2, early_stopping_threshold=0.05)]}


EVALUATING = {"eval_strategy": "steps", "eval_steps": 2}
STREAMING = {"max_steps": 9}

SCENARIOS: dict[str, Scenario] = {
    "draws from torch": Scenario(data=lambda: Augmented("torch")),
    "draws from python": Scenario(data=lambda: Augmented("python")),
    "draws from numpy": Scenario(data=lambda: Augmented("numpy")),
    "draws from generators of its own": Scenario(
        {"dataloader_num_workers": 2},
        data=lambda: Augmented("its own"),
        resumed_arguments={"dataloader_num_workers": 0},
    ),
    "generators that lie deep": Scenario(data=lambda: Deep("attribute")),
    "generators that are made late": Scenario({"dataloader_num_workers": 2}, data=lambda: Deep("lazy")),
    "a new generator in each epoch": Scenario(data=lambda: Deep("epoch")),
    "a generator of the script": Scenario(extra=lambda: {"data_collator": draws_from_global}),
    "rates computed with numpy": Scenario(trainer=NumpyRates),
    "one worker": Scenario({"dataloader_num_workers": 1}, data=lambda: Augmented("torch")),
    "two workers": Scenario({"dataloader_num_workers": 2}, data=lambda: Augmented("numpy")),
    "another number of workers": Scenario(
        {"dataloader_num_workers": 2}, data=lambda: Augmented("python"), resumed_arguments={"dataloader_num_workers": 0}
    ),
    "accumulation": Scenario({"gradient_accumulation_steps": 2}, data=lambda: Augmented("torch"), dropout=0.3),
    "dropout": Scenario(dropout=0.5, data=lambda: RegressionData(SIZE)),
    "bf16": Scenario({"bf16": True}, dropout=0.2, data=lambda: Augmented("torch")),
    "log lines between saves": Scenario({"logging_steps": 4, "save_steps": 3}, data=lambda: Augmented("torch")),
    "saving at epochs": Scenario(
        {"save_strategy": "epoch", "num_train_epochs": 3}, dropout=0.3, data=lambda: Augmented("torch")
    ),
    "evaluation that draws": Scenario(
        EVALUATING, data=lambda: Augmented("torch"), trainer=DrawsInEvaluation, dropout=0.3, extra=with_evaluation
    ),
    "evaluation at epochs": Scenario(
        {"eval_strategy": "epoch", "logging_strategy": "epoch"},
        data=lambda: Augmented("torch"),
        trainer=DrawsInEvaluation,
        dropout=0.3,
        extra=with_evaluation,
    ),
    "early stopping": Scenario(
        EVALUATING
        | {"metric_for_best_model": "loss", "load_best_model_at_end": True, "save_steps": 2, "num_train_epochs": 4},
        data=lambda: RegressionData(SIZE),
        extra=with_patience,
    ),
    "grouped by length": Scenario(
        {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False},
        data=lengths,
        dropout=0.3,
        extra=lambda: {"data_collator": stack_without_ids},
    ),
    "length-aware windows": Scenario(
        {"train_sampling_strategy": "length_aware", "length_aware_window": 2, "remove_unused_columns": False},
        data=lengths,
        dropout=0.3,
        extra=lambda: {"data_collator": stack_without_ids},
        resumed_arguments={"dataloader_num_workers": 2},
    ),
    "a stream of one pass": Scenario({"max_steps": 5}, data=lambda: Stream(40)),
    "a stream of many passes": Scenario(STREAMING, data=Stream, dropout=0.2),
    "a stream with workers": Scenario(STREAMING | {"dataloader_num_workers": 2}, data=Stream),
    "a stream with fewer workers later": Scenario(
        STREAMING | {"dataloader_num_workers": 2}, data=Stream, resumed_arguments={"dataloader_num_workers": 0}
    ),
    "a stream with a state and workers": Scenario(STREAMING | {"dataloader_num_workers": 2}, data=StatefulStream),
    "a stream with persistent workers": Scenario(
        STREAMING | {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}, data=StatefulStream
    ),
    "a stream of datasets": Scenario(STREAMING, data=lambda: hf_stream(False)),
    "a shuffled stream of datasets": Scenario(STREAMING, data=lambda: hf_stream(True), dropout=0.2),
    "a loader of the user's": Scenario(data=lambda: Augmented("torch"), trainer=OwnLoader, dropout=0.3),
    "a plain loader of the user's": Scenario(data=lambda: Augmented("numpy"), trainer=PlainLoader, dropout=0.3),
    "a shuffled stream of datasets with workers": Scenario(
        STREAMING | {"dataloader_num_workers": 2}, data=lambda: hf_stream(True), dropout=0.2
    ),
    "a loader with a generator": Scenario({"num_train_epochs": 3}, trainer=GeneratorLoader, dropout=0.3),
    "a sampler of the user's": Scenario(data=lambda: Augmented("torch"), trainer=SamplerLoader, dropout=0.3),
    "a callback with a state": Scenario(dropout=0.3, extra=lambda: {"callbacks": [MovingAverage()]}),
    "a schedule that waits for a metric": Scenario(
        EVALUATING
        | {
            "lr_scheduler_type": "reduce_lr_on_plateau",
            "lr_scheduler_kwargs": {"patience": 0},
            "metric_for_best_model": "loss",
        },
        extra=with_evaluation,
    ),
    "a schedule with warm-up": Scenario({"lr_scheduler_type": "cosine", "warmup_steps": 3, "optim": "adafactor"}),
    "neftune-like noise": Scenario(
        {"data_seed": 9, "max_grad_norm": 0.1}, dropout=0.1, data=lambda: Augmented("torch")
    ),
}
