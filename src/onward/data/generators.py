"""Random number generators that samplers, data sets and collators own.

A sampler with a generator of its own (``DataLoader(shuffle=True, generator=…)``, a weighted sampler) goes on in it from
epoch to epoch, so where it stood when an epoch began is part of the data order. A data set with one
(``numpy.random.default_rng(…)``) augments with it, so it is seeded for each sample, as the global ones are.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from onward.data.order import EpochShuffle

_MANY = 64
"""Longer lists hold samples, not parts."""
_Access = tuple[Callable[[], Any], Callable[[Any], Any]]
_BELOW = ("batch_sampler", "sampler")
_INSIDE = ("dataset", "datasets", "transform", "transforms", "target_transform", "data_collator")


def states_of(loader: Any) -> list[Any]:
    """The states of all generators below `loader`, JSON-able, always in the same order."""
    return [read() for read, _ in _accesses(loader)]


def restore_states(loader: Any, states: list[Any]) -> None:
    """Put them back; the samplers must be built as they were."""
    for (_, write), state in zip(_accesses(loader), states, strict=False):
        write(state)


def owned_by(data: Any) -> list[Any]:
    """The generators among the attributes of a data set or collator, and of what it wraps or transforms with."""
    found: dict[int, Any] = {}
    for part in _chain(data, _INSIDE):
        found.update((id(value), value) for value in vars(part).values() if _access(value) is not None)
    return list(found.values())


def seed_owned(generators: list[Any], key: int) -> None:
    """Seed them all with a 64-bit key."""
    for each in generators:
        if isinstance(each, torch.Generator):
            each.manual_seed(key)
        elif isinstance(each, np.random.Generator):
            each.bit_generator.state = type(each.bit_generator)(key).state
        else:
            each.seed(key & 0xFFFFFFFF)


def _accesses(loader: Any) -> list[_Access]:
    found: dict[int, _Access] = {}
    for part in _chain(loader, _BELOW):
        # The shuffle of onward's own loader is seeded anew for each epoch.
        for value in () if isinstance(part, EpochShuffle) else vars(part).values():
            access = _access(value)
            if access is not None:
                found.setdefault(id(value), access)
    return list(found.values())


def _chain(part: Any, names: tuple[str, ...]) -> Iterator[Any]:
    """`part` and what lies below it, under attributes of these names."""
    seen: list[Any] = []
    waiting = [part]
    while waiting:
        part = waiting.pop(0)
        if isinstance(part, list | tuple):
            waiting += part if len(part) <= _MANY else []
            continue
        if not hasattr(part, "__dict__") or any(part is each for each in seen):
            continue
        seen.append(part)
        yield part
        waiting += [vars(part).get(name) for name in names]


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
