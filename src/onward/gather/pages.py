"""Memory for what an evaluation keeps, apart from the C allocator's.

A model's logits are large, live shortly and come again in the same size. Something small that outlives them, put into
the gap that they left, makes the gap too small for the next ones: then the process grows by one batch of logits per
batch, for nothing. So what is kept goes to pages of its own, in long stretches.
"""

from __future__ import annotations

import mmap

import torch

_STRETCH = 2**20
_PRIVATE = {"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}  # Windows has no such flag


def pages(size: int) -> mmap.mmap:
    """Fresh zeroed memory of `size` bytes. It takes room as it is written, and gives it back when it is let go."""
    return mmap.mmap(-1, size, **_PRIVATE)


def copy_to_pages(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy of a host tensor in pages of its own."""
    return _empty(tensor.numel(), tensor.dtype).view(tensor.shape).copy_(tensor)


def _empty(count: int, dtype: torch.dtype) -> torch.Tensor:
    if count == 0:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(pages(count * dtype.itemsize), dtype=dtype, count=count)


class Rows:
    """Rows of one shape and type, one behind the other, in few long stretches of memory.

    Args:
        like: a tensor whose rows (all but the first dimension) and type these are.
        expected: rows to make room for at once. Room takes memory only as it is filled; if it is enough, all rows end
            up in one piece.
    """

    def __init__(self, like: torch.Tensor, expected: int = 0) -> None:
        self.tail = like.shape[1:]
        self.dtype = like.dtype
        self._row_bytes = max(1, self.tail.numel() * like.element_size())
        self._expected = expected
        self._stretches: list[torch.Tensor] = []
        self._room = 0
        self._filled = 0
        self._rows = 0

    def fits(self, tensor: torch.Tensor) -> bool:
        """Whether the rows of `tensor` are of this shape and type."""
        return tensor.shape[1:] == self.tail and tensor.dtype == self.dtype

    def add(self, tensor: torch.Tensor) -> None:
        """Copy the rows of a host tensor."""
        taken = min(tensor.shape[0], self._room - self._filled)
        if taken:
            self._stretches[-1][self._filled : self._filled + taken] = tensor[:taken]
            self._filled += taken
        rest = tensor[taken:]
        if len(rest):
            self._cut()
            self._open(len(rest))
            self._stretches[-1][: len(rest)] = rest
            self._filled = len(rest)
        self._rows += tensor.shape[0]

    def _open(self, rows: int) -> None:
        """Begin another stretch: long enough that there are few, short enough to be copied one by one at the end."""
        if not self._stretches:
            room = max(rows, self._expected)  # exact without expectation: batches may all differ in shape
        else:
            room = max(rows, _STRETCH // self._row_bytes, self._rows // 8)
        try:
            stretch = _empty(room * self.tail.numel(), self.dtype)
        except OSError:  # the system does not promise that much at once
            room = rows
            stretch = _empty(room * self.tail.numel(), self.dtype)
        self._room = room
        self._stretches.append(stretch.view(room, *self.tail))

    def _cut(self) -> None:
        if self._stretches:
            self._stretches[-1] = self._stretches[-1][: self._filled]

    def parts(self) -> list[torch.Tensor]:
        """All rows, as tensors of many rows each."""
        self._cut()
        return self._stretches
