"""Data that draws, and streams of every kind, for the scenarios of a resume."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from tests.tiny import RegressionData

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


class RewindingStream(StatefulStream):
    """Stands at its beginning again when a pass has ended."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield from super().__iter__()
        self.at, self.loaded = 0, False


class SizedStream(Stream):
    """A stream that knows its length, and changes from epoch to epoch."""

    epoch = 0

    def __len__(self) -> int:
        return len(self.data)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for sample in super().__iter__():
            yield {**sample, "x": sample["x"] + 0.1 * self.epoch}


class SizedStatefulStream(StatefulStream):
    """The same with a state; `beyond` its length lie samples that no epoch reaches."""

    def __init__(self, size: int = SIZE, beyond: int = 0) -> None:
        super().__init__(size + beyond)
        self.size = size

    def __len__(self) -> int:
        return self.size


class OngoingStream(IterableDataset[dict[str, Tensor]]):
    """A long stream that each epoch goes on in where the last one ended."""

    def __init__(self, size: int = SIZE) -> None:
        self.data, self.at, self.size = Augmented("torch", 5 * size), 0, size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while self.at < len(self.data):
            self.at += 1
            yield self.data[self.at - 1]

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.at = state["at"]


def noisy(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collates with noise from torch's global generator."""
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    return {**batch, "x": batch["x"] + torch.randn(4)}


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
