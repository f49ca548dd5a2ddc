"""Cutting a micro-batch into smaller ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from onward.errors import DataError
from onward.gather import find_batch_size


class Pieces(list[Any]):
    """The parts of one micro-batch, each collated by itself, and where its samples stand in the data set."""

    indices: Any = None
    """`onward.data.batches.Indices` of the micro-batch, `None` where they are unknown."""
    collated: list[int] | None = None
    """Samples that each was collated of, `None` where that is unknown."""

    def sizes(self) -> list[int]:
        """Samples in each. A collator that lays all samples in one row does not let them be counted behind it."""
        return [size_of(piece) for piece in self] if self.collated is None else self.collated

    def batches(self) -> list[int]:
        """Samples in each micro-batch of the plan that this holds: one, unless several were joined."""
        return [sum(self.sizes())] if self.indices is None else self.indices.sizes

    def each(self, work: Callable[[Any], Any]) -> Pieces:
        """The result of `work` for each part, in its place."""
        done = Pieces(map(work, self))
        done.indices, done.collated = self.indices, self.collated
        return done


def spans(count: int, limit: int | None) -> list[tuple[int, int]]:
    """Cut ``count`` samples into stretches of at most ``limit``; all are full but the last."""
    size = count if limit is None else max(1, min(limit, count))
    return [(begin, min(begin + size, count)) for begin in range(0, count, size)] if count else [(0, 0)]


def size_of(batch: Any) -> int:
    """Samples in a collated batch; 1 where that cannot be seen."""
    return find_batch_size(batch) or 1


def cut(batch: Any, limit: int | None) -> list[Any]:
    """Cut a collated batch along its first dimension.

    Raises:
        DataError: it has a member whose first dimension is not that of the samples.
    """
    count = size_of(batch)
    parts = spans(count, limit)
    return [batch] if len(parts) == 1 else [_stretch(batch, span, count) for span in parts]


def _stretch(nest: Any, span: tuple[int, int], count: int) -> Any:
    begin, end = span
    if isinstance(nest, Mapping):
        return type(nest)({name: _stretch(part, span, count) for name, part in nest.items()})  # type: ignore[call-arg]
    if isinstance(nest, (torch.Tensor, np.ndarray)):
        if nest.ndim == 0 or nest.shape[0] == 1:
            return nest  # one for all samples
        if nest.shape[0] != count:
            raise DataError(
                f"A batch of {count} samples holds a tensor of shape {tuple(nest.shape)}, which cannot be cut by "
                "samples."
            )
        return nest[begin:end]
    if isinstance(nest, (list, tuple)):
        if any(isinstance(part, (torch.Tensor, np.ndarray, Mapping)) for part in nest) and len(nest) != count:
            parts = [_stretch(part, span, count) for part in nest]
            return type(nest)(*parts) if hasattr(nest, "_fields") else type(nest)(parts)
        return nest[begin:end] if len(nest) == count else nest
    return nest


class Limit:
    """Most samples of a micro-batch, seen by loader workers too."""

    def __init__(self) -> None:
        self._value: torch.Tensor = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set(self, samples: int) -> None:
        """Set it; what workers have prefetched was cut by the earlier one."""
        self._value.fill_(samples)

    def get(self) -> int:
        """The limit in samples, 0 for none."""
        return int(self._value)
