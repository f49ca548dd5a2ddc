"""The order of samples within an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Sized
from itertools import cycle, islice
from typing import Any

import torch
from torch.utils.data import RandomSampler, Sampler

from onward.data.draws import key_of
from onward.errors import DataError


class EpochShuffle(RandomSampler):
    """A random sampler whose order is a function of `(seed, epoch)` alone.

    The generator is seeded with ``seed + epoch`` before each epoch, as accelerate's seedable sampler does, so a run
    sees its samples in the same order as under `transformers.Trainer`.
    """

    def __init__(self, sampler: RandomSampler, seed: int) -> None:
        """Take data, replacement and number of samples from `sampler`."""
        super().__init__(
            sampler.data_source,
            replacement=sampler.replacement,
            num_samples=sampler._num_samples,
            generator=torch.Generator(),
        )
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        yield from super().__iter__()


class LengthGroupedSampler(Sampler[int]):
    """Random order in which samples of about the same length stand together, to save padding.

    A permutation is cut into mega-batches of up to 50 batches; each is sorted by length, longest first. The
    longest sample of all comes first, so that a batch that does not fit in memory shows at once.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, generator: torch.Generator | None = None) -> None:
        """`lengths`: tokens per sample; `batch_size`: samples per step; without `generator`, torch's global one."""
        self.lengths = lengths
        self.batch_size = batch_size
        self.generator = generator

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        total = len(self.lengths)
        batches_per_group = max(1, min(total // (self.batch_size * 4), 50))
        permutation: list[int] = torch.randperm(total, generator=self.generator).tolist()
        size = batches_per_group * self.batch_size
        groups = [
            sorted(permutation[start : start + size], key=self.lengths.__getitem__, reverse=True)
            for start in range(0, total, size)
        ]
        longest = max(range(len(groups)), key=lambda g: self.lengths[groups[g][0]])
        groups[0][0], groups[longest][0] = groups[longest][0], groups[0][0]
        for group in groups:
            yield from group


class LengthAwareSampler(Sampler[int]):
    """The order of `sampler`, with the samples of each optimizer step sorted by length, longest first.

    A step keeps the samples that it has in the order of `sampler`; only which of them share a micro-batch changes, so
    less of it is padding. With a `window` of several steps their samples are sorted together, dealt out to the steps
    by length, and these steps shuffled: less padding again, but other samples in a step.

    The order is a function of (order of `sampler`, seed, epoch, lengths). It does not depend on the number of
    processes or the size of micro-batches as long as their product with the accumulation stays. An incomplete last
    step keeps its order: `drop_last` would otherwise always drop the shortest samples.
    """

    def __init__(
        self, sampler: Sampler[int], lengths: Sequence[int], step_size: int, *, window: int = 1, seed: int = 0
    ) -> None:
        """`lengths`: tokens per sample; `step_size`: samples per optimizer step, of all processes together."""
        self.sampler = sampler
        self.lengths = lengths
        self.step_size = step_size
        self.window = window
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        order = iter(self.sampler)
        size = self.step_size
        shuffling = torch.Generator().manual_seed(key_of(self.seed, self.epoch))
        while samples := list(islice(order, size * self.window)):
            whole = len(samples) - len(samples) % size
            ranked = sorted(samples[:whole], key=self.lengths.__getitem__, reverse=True)
            steps = (
                torch.randperm(whole // size, generator=shuffling).tolist() if self.window > 1 else range(whole // size)
            )
            for step in steps:
                yield from ranked[step * size : (step + 1) * size]
            yield from samples[whole:]


def sample_lengths(dataset: Any, column: str, input_name: str | None) -> list[int]:
    """Tokens per sample: from the data set's column of lengths if it has one, else by measuring each sample.

    A column of lists in a `datasets.Dataset` is measured without reading what is in the lists.

    Args:
        dataset: map-style data whose samples are mappings.
        column: name of a column that holds lengths (`datasets.Dataset` only).
        input_name: key of the model's main input; `None` means ``"input_ids"``.

    Raises:
        DataError: the samples are not mappings with that key.
    """
    if column in (getattr(dataset, "column_names", None) or ()):
        return [int(n) for n in dataset[column]]
    key = input_name or "input_ids"
    if (measured := _list_lengths(dataset, key)) is not None:
        return measured
    first = dataset[0]
    # BatchEncoding is a UserDict, hence the duck test.
    if (not isinstance(first, Mapping) and not hasattr(first, "keys")) or key not in first:
        found = sorted(first.keys()) if hasattr(first, "keys") else type(first).__name__
        raise DataError(
            f"Grouping by length needs samples that are dictionaries with the key '{key}'; got {found}. "
            f"Add a column '{column}' with the lengths, or choose train_sampling_strategy='random'."
        )
    return [len(sample[key]) for sample in dataset]


def _list_lengths(dataset: Any, key: str) -> list[int] | None:
    """Lengths of the lists in a column of a `datasets.Dataset`; `None` where there is no such column of plain lists."""
    if not type(dataset).__module__.startswith("datasets.") or key not in (
        getattr(dataset, "column_names", None) or ()
    ):
        return None
    if dataset.format["type"] == "custom":  # a transform makes the samples when they are read
        return None
    from pyarrow import compute, types

    kind = dataset.features.arrow_schema.field(key).type
    if not (types.is_list(kind) or types.is_large_list(kind)):
        return None
    lengths: list[int] = []
    for batch in dataset.select_columns([key]).with_format("arrow").iter(10_000):
        counted = compute.list_value_length(batch[key])
        if counted.null_count:
            return None
        lengths += counted.to_pylist()
    return lengths


def longest_samples(dataset: Any, count: int, column: str) -> list[int]:
    """Indices of the `count` longest samples, longest first; again from the front where there are fewer.

    Without a column of lengths, samples are measured: all numbers in them. Of a large data set that is some thousand,
    spread evenly, because each has to be fetched.
    """
    if column in (getattr(dataset, "column_names", None) or ()):
        looked_at = range(len(dataset))
        lengths = [int(n) for n in dataset[column]]
    else:
        looked_at = range(0, len(dataset), max(1, len(dataset) // _MEASURED))
        lengths = [_numbers_in(dataset[i]) for i in looked_at]
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    return [looked_at[place] for place in islice(cycle(order), count)]


_MEASURED = 4096
"""Samples to measure at least, where a data set has more."""


def _numbers_in(sample: Any) -> int:
    if hasattr(sample, "shape"):
        return math.prod(sample.shape)
    if isinstance(sample, Mapping) or callable(getattr(sample, "values", None)):
        return sum(map(_numbers_in, sample.values()))
    if isinstance(sample, (list, tuple)) and sample and not isinstance(sample[0], (int, float)):
        return sum(map(_numbers_in, sample))
    return len(sample) if isinstance(sample, Sized) else 1


def has_length(dataset: Any) -> bool:
    """Whether `len(dataset)` works."""
    if not isinstance(dataset, Sized):
        return False
    try:
        len(dataset)
    except TypeError:  # some wrappers define __len__ and raise in it
        return False
    return True


def named_set(datasets: Any, name: str) -> Any:
    """The data set `name` of a dictionary of several.

    Raises:
        DataError: there is none of that name.
    """
    if not isinstance(datasets, dict) or name not in datasets:
        there = f"a dictionary of {', '.join(datasets)}" if isinstance(datasets, dict) else type(datasets).__name__
        raise DataError(
            f"There is no evaluation data named {name!r}: eval_dataset is {there}. Pass a name of a dictionary, or a "
            "data set (a name of the Hub is loaded with datasets.load_dataset)."
        )
    return datasets[name]
