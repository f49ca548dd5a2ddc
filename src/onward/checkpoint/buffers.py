"""Buffers that `nn.Module.load_state_dict` cannot fill as they are: those that grow in training, and expanded ones."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn


def distinct(tensor: torch.Tensor, of: torch.Tensor | None = None) -> torch.Tensor:
    """Return the part of a tensor in which each element has a place of its own in memory.

    An expanded tensor repeats elements (stride 0), and cannot be written to as a whole.

    Args:
        tensor: what to take the part of.
        of: another tensor of that shape, where it is the one that repeats elements.
    """
    for dim, (size, stride) in enumerate(zip(tensor.shape, (tensor if of is None else of).stride(), strict=True)):
        if size > 1 and stride == 0:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


@contextlib.contextmanager
def fitted(model: nn.Module, state: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Make the buffers of a model such that ``load_state_dict`` can fill them; yields the state to hand to it.

    A buffer that has another shape in `state` (running lists grow), or that was None when the model was made, is made
    anew; an expanded one is filled where its elements are. Modules that load in a way of their own are left alone.
    """
    given = dict(state)
    expanded: list[tuple[nn.Module, str, torch.Tensor]] = []
    for key, module, name in _persistent_buffers(model):
        buffer, saved = module._buffers[name], given.get(key)
        if not isinstance(saved, torch.Tensor) or type(module)._load_from_state_dict is not _USUAL:
            continue
        if buffer is None or (buffer.shape != saved.shape and not (buffer.dim() == 0 and saved.shape == (1,))):
            _make_anew(model, module, name, saved)
        elif buffer.shape == saved.shape and distinct(buffer) is not buffer:
            given[key] = distinct(saved, of=buffer)
            module._buffers[name] = distinct(buffer)
            expanded.append((module, name, buffer))
    try:
        yield given
    finally:
        for module, name, buffer in expanded:
            module._buffers[name] = buffer


_USUAL = nn.Module._load_from_state_dict


def _persistent_buffers(model: nn.Module) -> list[tuple[str, nn.Module, str]]:
    return [
        (f"{path}.{name}" if path else name, module, name)
        for path, module in model.named_modules()
        for name in module._buffers
        if name not in module._non_persistent_buffers_set
    ]


def _make_anew(model: nn.Module, module: nn.Module, name: str, saved: torch.Tensor) -> None:
    """Put an empty buffer of the saved shape in the place of one; also under the other names that it has."""
    buffer = module._buffers[name]
    if buffer is None:
        near = next(itertools.chain(module.parameters(), model.parameters(), model.buffers()), saved)
        module._buffers[name] = torch.empty_like(saved, device=near.device)
        return
    fresh = torch.empty(saved.shape, dtype=buffer.dtype, device=buffer.device)
    for each in model.modules():
        for other, present in each._buffers.items():
            if present is buffer:
                each._buffers[other] = fresh
