"""Ways to train that a resume must not be able to tell from a run that was never stopped."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from onward import EarlyStoppingCallback, ExportableState, Trainer, TrainerCallback, TrainingArguments
from tests.resume.data import (
    SIZE,
    Augmented,
    Deep,
    OngoingStream,
    SizedStatefulStream,
    SizedStream,
    StatefulStream,
    Stream,
    draws_from_global,
    hf_stream,
    lengths,
    noisy,
    stack_without_ids,
)
from tests.tiny import RegressionData, TinyRegression


class OwnLoader(Trainer):
    """Builds its loader as scripts do that need something special."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        return self.accelerator.prepare(DataLoader(self.train_dataset, batch_size=4, shuffle=True))


class StreamLoader(Trainer):
    """The same around a stream."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        return self.accelerator.prepare(DataLoader(self.train_dataset, batch_size=4))


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


class ShortEpochs(TrainerCallback):
    """Ends each epoch within its third step."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begin = state.global_step

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_epoch_stop = state.global_step == self.begin + 2


class Signals(TrainerCallback):
    """Counts events, and sends SIGTERM at the n-th of them."""

    def __init__(self, events: Iterable[str], number: int | None = None) -> None:
        self.count, self.number = 0, number
        for event in events:
            setattr(self, event, self.happened)

    def happened(self, *_: Any, **__: Any) -> None:
        self.count += 1
        if self.count == self.number:
            os.kill(os.getpid(), signal.SIGTERM)


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


def with_evaluation() -> dict[str, Any]:
    """An evaluation set."""
    return {"eval_dataset": RegressionData(8, seed=1)}


def with_patience() -> dict[str, Any]:
    """Early stopping that gives up after two evaluations without enough progress."""
    return with_evaluation() | {"callbacks": [EarlyStoppingCallback(2, early_stopping_threshold=0.05)]}


EVALUATING = {"eval_strategy": "steps", "eval_steps": 2}
STREAMING = {"max_steps": 9}
BY_EPOCH = {"num_train_epochs": 3, "save_strategy": "epoch"}
UNEVEN = {"gradient_accumulation_steps": 4, "num_train_epochs": 3}  # steps of 4 and of 2 micro-batches

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
    "epochs that end within a step": Scenario(
        BY_EPOCH | {"gradient_accumulation_steps": 2}, dropout=0.3, extra=lambda: {"callbacks": [ShortEpochs()]}
    ),
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
    "a stream with a length": Scenario({"num_train_epochs": 3}, data=SizedStream, dropout=0.2),
    "a stream with a length, saved by epoch": Scenario(
        BY_EPOCH | {"gradient_accumulation_steps": 2}, data=SizedStream, dropout=0.2
    ),
    "a stream with a length in uneven steps": Scenario(UNEVEN, data=SizedStream, dropout=0.2),
    "a stream with a length and workers": Scenario(UNEVEN | {"dataloader_num_workers": 2}, data=SizedStream),
    "a stream with a length and a collator that draws": Scenario(
        BY_EPOCH | {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
        data=SizedStream,
        extra=lambda: {"data_collator": noisy},
    ),
    "a stream with a length and a state": Scenario(UNEVEN, data=SizedStatefulStream, dropout=0.2),
    "a stream with a length, a state and workers": Scenario(
        BY_EPOCH | {"dataloader_num_workers": 2}, data=SizedStatefulStream
    ),
    "a stream that is longer than its length": Scenario(
        {"num_train_epochs": 3}, data=lambda: SizedStatefulStream(beyond=9), dropout=0.2
    ),
    "a stream that is longer than its length, saved by epoch": Scenario(
        BY_EPOCH, data=lambda: SizedStatefulStream(beyond=9), dropout=0.2
    ),
    "an ongoing stream": Scenario({"num_train_epochs": 3}, data=OngoingStream, dropout=0.2),
    "an ongoing stream in uneven steps, saved by epoch": Scenario(
        UNEVEN | {"save_strategy": "epoch"}, data=OngoingStream, dropout=0.2
    ),
    "an ongoing stream in a loader of the user's": Scenario(
        {"num_train_epochs": 3}, data=OngoingStream, trainer=StreamLoader, dropout=0.2
    ),
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


def tensors_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copies of the weights and the optimizer's state."""
    tensors = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for number, state in trainer.optimizer.state_dict()["state"].items():
        tensors |= {f"{name} of parameter {number}": torch.as_tensor(value).clone() for name, value in state.items()}
    return tensors


def disturb() -> None:
    """Leave every global generator where a new process might not have it."""
    torch.manual_seed(random.randrange(10**6))
    torch.rand(7), random.random(), np.random.rand(3)


def checkpoints(folder: Path) -> list[Path]:
    """Those in a folder, by their steps."""
    return sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
