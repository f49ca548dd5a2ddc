"""Nests of tensors: walk them.

A *nest* is a tensor, an array, or a list, tuple or mapping of nests: what a model returns and what a batch is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any, TypeGuard

import numpy as np
import torch

Nest = Any


def map_nest(function: Callable[[Any], Any], nest: Nest) -> Nest:
    """Apply a function to every leaf and return a nest of the same types."""
    if isinstance(nest, Mapping):
        return type(nest)({key: map_nest(function, value) for key, value in nest.items()})  # type: ignore[call-arg]
    if isinstance(nest, (list, tuple)):
        parts = [map_nest(function, part) for part in nest]
        return type(nest)(*parts) if hasattr(nest, "_fields") else type(nest)(parts)
    return function(nest)


def leaves(nest: Nest) -> Iterator[Any]:
    """The leaves in the order in which `map_nest` visits them."""
    if isinstance(nest, Mapping):
        nest = nest.values()
    elif not isinstance(nest, (list, tuple)):
        yield nest
        return
    for part in nest:
        yield from leaves(part)


def shape_of(nest: Nest) -> Nest:
    """What two nests must have in common to be joined: types, keys and lengths, in a form that can be compared."""
    if isinstance(nest, Mapping):
        return (type(nest).__name__, tuple((key, shape_of(value)) for key, value in nest.items()))
    if isinstance(nest, (list, tuple)):
        return (type(nest).__name__, tuple(shape_of(part) for part in nest))
    return "tensor" if isinstance(nest, (torch.Tensor, np.ndarray)) else type(nest).__name__


def detach(nest: Nest) -> Nest:
    """The same nest without its ties to the autograd graph."""
    return map_nest(lambda leaf: leaf.detach() if isinstance(leaf, torch.Tensor) else leaf, nest)


def numpify(nest: Nest) -> Nest:
    """Arrays in host memory; bfloat16, which numpy lacks, becomes float32. What is no tensor stays as it is."""
    return map_nest(to_array, nest)


def to_array(leaf: Any) -> Any:
    """One leaf of `numpify`."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    leaf = leaf.detach().cpu()
    return (leaf.float() if leaf.dtype == torch.bfloat16 else leaf).numpy()


def find_batch_size(nest: Nest) -> int | None:
    """Length of the first dimension of the first leaf that has one; `None` if none has."""
    for leaf in leaves(nest):
        if isinstance(leaf, (torch.Tensor, np.ndarray)) and leaf.ndim > 0:
            return int(leaf.shape[0])
    return None


def plain_numbers(nest: Nest) -> Nest:
    """Python's numbers in place of numpy's and of tensors of one element, so that the result can be written as JSON."""
    return map_nest(_to_number, nest)


def _to_number(leaf: Any) -> Any:
    if isinstance(leaf, np.generic) or (isinstance(leaf, torch.Tensor) and leaf.numel() == 1):
        return leaf.item()
    return leaf


def has_length(data: Any) -> TypeGuard[Sized]:
    """Whether `len` works on it."""
    try:
        return len(data) is not None
    except (TypeError, AttributeError, NotImplementedError):
        return False
