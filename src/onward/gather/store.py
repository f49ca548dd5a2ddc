"""What the batches of an evaluation yielded, kept in host memory until the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from onward.errors import DataError
from onward.gather.nests import Nest, leaves, map_nest, numpify, shape_of, to_array
from onward.gather.pages import Rows, copy_to_pages

PAD_INDEX = -100
"""Fills the places that a shorter batch lacks; transformers' losses and metrics ignore it."""


class BatchStore:
    """Collects what comes from batch after batch, in host memory.

    Tensors on an accelerator leave it as they come, in the type they have, through pinned memory and while the device
    works on the next batch. Every tensor is copied, so that a view does not keep a larger tensor alive and a model
    that reuses its output buffer does no harm.

    Args:
        join: one nest for all samples at the end, padded where lengths differ; else a list with a nest per batch.
        expected: samples to come, where that is known; the arrays are then filled in place.
    """

    def __init__(self, join: bool = True, expected: int | None = None) -> None:
        self._join = join
        self._expected = expected or 0
        self._shape: Nest = None
        self._template: Nest = None
        self._columns: list[_Column] = []
        self._list: list[Any] = []
        self._on_its_way: Nest = None
        self._count = 0
        self.nbytes = 0
        """Bytes that the final arrays will take, for what was added so far."""

    def add(self, nest: Nest, rows: bool = False) -> None:
        """Take what a batch yielded.

        Args:
            nest: tensors whose first dimension is the sample.
            rows: a list in it has an entry per sample (as gathering objects over processes yields, and as the labels of
                images are, each with its own number of boxes); such lists are chained.

        Raises:
            DataError: it cannot be joined with earlier batches.
        """
        if self._join:
            nest = _with_rows(nest) if rows else nest
            self._check(nest)
        self._count += 1
        self.nbytes += sum(_final_size(leaf) for leaf in leaves(nest))
        self._settle()
        leaving = map_nest(_leave_device, nest)
        if any(isinstance(leaf, _Copy) for leaf in leaves(leaving)):
            self._on_its_way = leaving
        else:
            self._place(leaving)

    def _check(self, nest: Nest) -> None:
        shape = shape_of(nest)
        if self._count == 0:
            self._shape = shape
            self._template = map_nest(lambda leaf: ..., nest)
            self._columns = [_Column(self._expected) for _ in leaves(nest)]
        elif shape != self._shape:
            raise DataError(
                f"The outputs of batch {self._count} have another structure than those before: got {shape}, "
                f"expected {self._shape}. Make the model return the same outputs for every batch, leave some out "
                "with ignore_keys, or set eval_do_concat_batches=False to get a list of batches."
            )
        else:
            _check_types(nest)

    def _settle(self) -> None:
        """Wait for the batch before, whose copy went on while the device worked on this one."""
        if self._on_its_way is not None:
            leaving, self._on_its_way = self._on_its_way, None
            self._place(map_nest(lambda leaf: leaf.wait() if isinstance(leaf, _Copy) else leaf, leaving))

    def _place(self, nest: Nest) -> None:
        if not self._join:
            self._list.append(map_nest(_own, nest))
        else:
            for column, leaf in zip(self._columns, leaves(nest), strict=True):
                column.add(leaf)

    def arrays(self) -> Nest:
        """Everything collected, as arrays; `None` if nothing was. Empties the store, to need the memory once.

        Raises:
            DataError: shapes or types that cannot be joined.
        """
        self._settle()
        if self._count == 0:
            return None
        if not self._join:
            return numpify(self._list)
        joined = iter([column.array() for column in self._columns])
        return map_nest(lambda _: next(joined), self._template)


class _Column:
    """One leaf of the nests, over all batches."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._parts: list[Any] = []
        self._open: Rows | None = None
        self._count = 0
        self._is_number = False
        self._is_chain = False

    def add(self, leaf: Any) -> None:
        self._count += 1
        if isinstance(leaf, _PerSample):
            self._is_chain = True
            self._parts.extend(map_nest(_own, row) for row in leaf.rows)
            return
        if not isinstance(leaf, torch.Tensor):
            self._close()
            self._parts.append(leaf)
            return
        if leaf.dim() == 0:
            self._is_number = self._count == 1
            leaf = leaf.reshape(1)
        if self._open is None or not self._open.fits(leaf):
            self._close()
            # numpy has no bfloat16: those are converted at the end, stretch after stretch.
            self._open = Rows(leaf, 0 if leaf.dtype == torch.bfloat16 else self._expected)
            self._expected = 0  # lengths that differ need a place of their own each
        self._open.add(leaf)

    def _close(self) -> None:
        if self._open is not None:
            self._parts.extend(self._open.parts())
            self._open = None

    def array(self) -> Any:
        self._close()
        if self._is_chain:
            return numpify(self._parts)
        if len(self._parts) > 1:
            return _join(self._parts)
        whole = to_array(self._parts[0])  # one batch alone keeps the shape that it has
        return whole.reshape(()) if self._is_number and self._count == 1 else whole


def _join(parts: list[Any]) -> npt.NDArray[Any]:
    """Join along the first dimension into one array, letting go of each part as it is copied."""
    shapes = [tuple(part.shape) or (1,) for part in parts]
    if len({(len(shape), shape[2:]) for shape in shapes}) > 1:
        raise DataError(
            f"The outputs of the batches have shapes that cannot be joined, even by padding the second dimension: "
            f"{sorted(set(shapes))}. Pad them alike in preprocess_logits_for_metrics, or set "
            "eval_do_concat_batches=False to get a list of batches."
        )
    dtypes = [to_array(part[:0] if part.ndim else part).dtype for part in parts]
    tail = shapes[0][1:]
    padded = len({shape[1:2] for shape in shapes}) > 1
    if padded:
        tail = (max(shape[1] for shape in shapes), *tail[1:])
    rows = sum(shape[0] for shape in shapes)
    dtype = dtypes[0] if padded else np.result_type(*set(dtypes))
    fill = np.asarray(PAD_INDEX).astype(dtype)  # an unsigned type wraps around, as with torch
    whole = np.full((rows, *tail), fill, dtype) if padded else np.empty((rows, *tail), dtype)
    start = 0
    parts.reverse()
    for shape in shapes:
        place = (slice(start, start + shape[0]), *(slice(length) for length in shape[1:2]))
        whole[place] = to_array(parts.pop())
        start += shape[0]
    return whole


def _check_types(nest: Nest) -> None:
    for leaf in leaves(nest):
        if not isinstance(leaf, (torch.Tensor, np.ndarray, _PerSample)):
            raise DataError(
                f"Cannot join outputs of type {type(leaf).__name__} over batches, expected tensors or arrays. Leave "
                "that output out with ignore_keys, or set eval_do_concat_batches=False to get a list of batches."
            )


class _PerSample:
    """A list with an entry per sample, as one leaf of a nest."""

    def __init__(self, rows: list[Nest]) -> None:
        self.rows = rows


def _with_rows(nest: Nest) -> Nest:
    """The nest with its lists, or those in a tuple, as leaves."""
    if isinstance(nest, tuple):
        return tuple(map(_with_rows, nest))
    return _PerSample(nest) if isinstance(nest, list) else nest


def _final_size(leaf: Any) -> int:
    if isinstance(leaf, _PerSample):
        return sum(_final_size(part) for part in leaves(leaf.rows))
    if isinstance(leaf, torch.Tensor):  # numpy has no bfloat16: it becomes float32
        return leaf.numel() * (4 if leaf.dtype == torch.bfloat16 else leaf.element_size())
    return int(leaf.nbytes) if isinstance(leaf, np.ndarray) else 0


def _own(leaf: Any) -> Any:
    return copy_to_pages(leaf) if isinstance(leaf, torch.Tensor) else leaf


class _Copy:
    """A tensor on its way from a CUDA device to pinned memory."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._tensor.copy_(tensor, non_blocking=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> torch.Tensor:
        """The copy. It is scarce memory: to be copied on and let go."""
        self._arrived.synchronize()
        return self._tensor


def _leave_device(leaf: Any) -> Any:
    if isinstance(leaf, _PerSample):
        on_host = map_nest(lambda part: part.detach().cpu() if isinstance(part, torch.Tensor) else part, leaf.rows)
        return _PerSample(on_host)
    if not isinstance(leaf, torch.Tensor):
        return leaf
    leaf = leaf.detach()
    return _Copy(leaf) if leaf.device.type == "cuda" else leaf.cpu()
