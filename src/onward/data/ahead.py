"""Moving batches to the training device one ahead, so that a copy runs beside the training on the batch before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any


class Transfer(ABC):
    """A way to move a batch that takes its time, and can be waited for later."""

    @abstractmethod
    def start(self, batch: Any) -> Any:
        """Begin to move a batch; returns what `finish` needs."""

    @abstractmethod
    def finish(self, started: Any) -> Any:
        """The moved batch, ready for work that is queued from here on."""

    def __call__(self, batch: Any) -> Any:
        """Move a batch and wait for it."""
        return self.finish(self.start(batch))


def one_ahead(batches: Iterator[Any], transfer: Transfer) -> Iterator[Any]:
    """Give out moved batches, each when the move of the next one has begun.

    An error of `batches` comes where it would without this: behind the last good batch, not one before it.
    """
    ended: BaseException | None = None
    waiting: list[Any] = []
    while ended is None or waiting:
        if ended is None:
            try:
                waiting.append(transfer.start(next(batches)))
            except Exception as reason:
                ended = reason
        if len(waiting) > 1 or (ended is not None and waiting):
            yield transfer.finish(waiting.pop(0))
    if not isinstance(ended, StopIteration):
        raise ended
