"""Random number generators that samplers, data sets and collators own.

A sampler with a generator of its own (``DataLoader(shuffle=True, generator=…)``, a weighted sampler) goes on in it from
epoch to epoch, so where it stood when an epoch began is part of the data order. A data set with one
(``numpy.random.default_rng(…)``) augments with it, so it is seeded for each sample, as the global ones are.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from onward.data.order import EpochShuffle

_MANY = 64
"""Longer lists hold samples, not parts."""
_FAR = 2000
"""Things to look at; what lies further away is no part either."""
_Access = tuple[Callable[[], Any], Callable[[Any], Any]]
_BELOW = ("batch_sampler", "sampler")
_WORKING = ("__getitem__", "__getitems__", "__iter__", "__next__", "__call__")
"""Methods that draw."""
_ORDERING = ("datasets", "torch")
"""Libraries whose objects keep generators for the order of samples, which the user seeded."""
_LEAVES = (type(None), str, bytes, int, float, complex, type, ModuleType, torch.Tensor, np.ndarray)


def states_of(loader: Any) -> list[Any]:
    """The states of all generators below `loader`, JSON-able, always in the same order."""
    return [_plain(read()) for read, _ in _accesses(loader)]


def restore_states(loader: Any, states: list[Any]) -> None:
    """Put them back; the samplers must be built as they were."""
    for (_, write), state in zip(_accesses(loader), states, strict=False):
        write(_from_plain(state))


def owned_by(data: Any) -> list[Any]:
    """The generators that a data set or collator can reach.

    Those are among its attributes and theirs (what it wraps, what it transforms with), and in closures, defaults and
    globals of the functions that it consists of, as far as these are not a library's.
    """
    found: list[Any] = []
    waiting = deque([data])
    seen: dict[int, Any] = {}
    while waiting and len(seen) < _FAR:
        part = waiting.popleft()
        if isinstance(part, _LEAVES) or id(part) in seen:
            continue
        seen[id(part)] = part  # kept: a bound method is made anew by every look at it, and its number used again
        if _access(part) is not None:
            found.append(part)
        else:
            waiting += _parts_of(part)
    return found


def _parts_of(thing: Any) -> Iterable[Any]:
    """What may hold a generator in `thing`."""
    if isinstance(thing, dict):
        return thing.values() if len(thing) <= _MANY else ()
    if isinstance(thing, list | tuple | set | frozenset):
        return thing if len(thing) <= _MANY else ()
    if isinstance(thing, MethodType):
        return thing.__self__, thing.__func__
    if isinstance(thing, partial):
        return thing.func, thing.args, thing.keywords
    if isinstance(thing, FunctionType):
        return _parts_of_function(thing)
    own = list(getattr(thing, "__dict__", {}).values())
    if type(thing).__module__.partition(".")[0] in _ORDERING:
        return [value for value in own if _access(value) is None]
    working = [getattr(type(thing), name, None) for name in _WORKING]
    return [*own, *(each for each in working if isinstance(each, FunctionType))]


def _parts_of_function(function: FunctionType) -> Iterator[Any]:
    if "-packages" in function.__code__.co_filename:  # of a library, which knows no globals of the user's
        return
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not filled yet
            yield cell.cell_contents
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, FunctionType) or _access(value) is not None:
            yield value


def seed_owned(generators: list[Any], key: int) -> None:
    """Seed them all with a 64-bit key."""
    for each in generators:
        if isinstance(each, torch.Generator):
            each.manual_seed(key)
        elif isinstance(each, np.random.Generator):
            each.bit_generator.state = type(each.bit_generator)(key).state
        else:
            each.seed(key & 0xFFFFFFFF)


def states_of_owned(generators: list[Any]) -> list[Any]:
    """Their states, to be put back by `put_back_owned`."""
    return [read() for read, _ in _owned_accesses(generators)]


def put_back_owned(generators: list[Any], states: list[Any]) -> None:
    """Put them back to `states`."""
    for (_, write), state in zip(_owned_accesses(generators), states, strict=True):
        write(state)


def _owned_accesses(generators: list[Any]) -> Iterator[_Access]:
    return filter(None, map(_access, generators))


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
    """What reads and what writes the state of a generator, in the form that it has itself."""
    if isinstance(value, torch.Generator):
        return value.get_state, value.set_state
    if isinstance(value, np.random.RandomState):
        return partial(value.get_state, legacy=False), value.set_state
    if isinstance(value, np.random.Generator):
        bits: Any = value.bit_generator
        return lambda: bits.state, lambda state: setattr(bits, "state", state)
    if type(value) is random.Random:
        return value.getstate, value.setstate
    return None


def _plain(state: Any) -> Any:
    """JSON-able form of a state."""
    if isinstance(state, torch.Tensor):
        return state.cpu().numpy().tobytes().hex()
    return json.loads(json.dumps(state, default=lambda array: array.tolist()))


def _from_plain(state: Any) -> Any:
    """`_plain`'s inverse."""
    if isinstance(state, str):
        return torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8)
    return (state[0], tuple(state[1]), state[2]) if isinstance(state, list) else state
