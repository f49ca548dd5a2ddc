"""The order of samples within an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any

import torch
from torch.utils.data import RandomSampler, Sampler

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


def sample_lengths(dataset: Any, column: str, input_name: str | None) -> list[int]:
    """Tokens per sample: from the data set's column of lengths if it has one, else by measuring each sample.

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
    first = dataset[0]
    # BatchEncoding is a UserDict, hence the duck test.
    if (not isinstance(first, Mapping) and not hasattr(first, "keys")) or key not in first:
        found = sorted(first.keys()) if hasattr(first, "keys") else type(first).__name__
        raise DataError(
            f"Grouping by length needs samples that are dictionaries with the key '{key}'; got {found}. "
            f"Add a column '{column}' with the lengths, or choose train_sampling_strategy='random'."
        )
    return [len(sample[key]) for sample in dataset]


def has_length(dataset: Any) -> bool:
    """Whether `len(dataset)` works."""
    if not isinstance(dataset, Sized):
        return False
    try:
        len(dataset)
    except TypeError:  # some wrappers define __len__ and raise in it
        return False
    return True
