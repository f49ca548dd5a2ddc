"""Random number generators that samplers own.

A sampler with a generator of its own (``DataLoader(shuffle=True, generator=…)``, a weighted sampler) goes on in it from
epoch to epoch, so where it stood when an epoch began is part of the data order.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from onward.data.order import EpochShuffle

_Access = tuple[Callable[[], Any], Callable[[Any], Any]]
_BELOW = ("batch_sampler", "sampler")


def states_of(loader: Any) -> list[Any]:
    """The states of all generators below `loader`, JSON-able, always in the same order."""
    return [read() for read, _ in _accesses(loader)]


def restore_states(loader: Any, states: list[Any]) -> None:
    """Put them back; the samplers must be built as they were."""
    for (_, write), state in zip(_accesses(loader), states, strict=False):
        write(state)


def _accesses(loader: Any) -> list[_Access]:
    found: dict[int, _Access] = {}
    for part in _chain(loader):
        # The shuffle of onward's own loader is seeded anew for each epoch.
        for value in () if isinstance(part, EpochShuffle) else vars(part).values():
            access = _access(value)
            if access is not None:
                found.setdefault(id(value), access)
    return list(found.values())


def _chain(part: Any) -> Iterator[Any]:
    """The loader and the samplers that lie below it."""
    seen: list[Any] = []
    waiting = [part]
    while waiting:
        part = waiting.pop(0)
        if part is None or not hasattr(part, "__dict__") or any(part is each for each in seen):
            continue
        seen.append(part)
        yield part
        waiting += [vars(part).get(name) for name in _BELOW]


def _access(value: Any) -> _Access | None:
    if isinstance(value, torch.Generator):
        return (
            lambda: value.get_state().cpu().numpy().tobytes().hex(),
            lambda state: value.set_state(torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8)),
        )
    if isinstance(value, np.random.RandomState):
        return lambda: _plain(value.get_state(legacy=False)), value.set_state
    if isinstance(value, np.random.Generator):
        bits: Any = value.bit_generator
        return lambda: _plain(bits.state), lambda state: setattr(bits, "state", state)
    if type(value) is random.Random:
        return lambda: _plain(value.getstate()), lambda state: value.setstate((state[0], tuple(state[1]), state[2]))
    return None


def _plain(state: Any) -> Any:
    return json.loads(json.dumps(state, default=lambda array: array.tolist()))
