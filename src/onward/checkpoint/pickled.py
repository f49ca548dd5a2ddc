"""Objects to a file by pickle and back, where reading may run no code: `torch.save`, and `torch.load(weights_only)`.

torch reads tensors and plain containers. Beside these it is allowed here to read values of the standard library and of
numpy, members of enumerations and named tuples: making one of them runs nothing. Any other class has to be allowed by
its user (`torch.serialization.add_safe_globals`); what would not be read again is refused when it is to be written.
"""

from __future__ import annotations

import contextlib
import copyreg
import datetime
import decimal
import enum
import fractions
import io
import pickle
import sys
import threading
import uuid
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from onward.errors import UnreadableState

_MANY = 3
"""Places that an error lists."""


def write(data: Any, handle: Any, what: str) -> None:
    """Write `data` into an open file; `what` is named in the error.

    Raises:
        UnreadableState: something in it could not be read again.
    """
    check(data, what)
    _save(data, handle)


def read(source: Path | bytes, map_location: Any = "cpu") -> Any:
    """Read what `write` or `torch.save` wrote: a file, or its content.

    Raises:
        pickle.UnpicklingError: it holds something that is not allowed. (And whatever torch raises for broken files.)
    """
    with _allowed(_values()):
        try:
            return torch.load(_opened(source), map_location=map_location, weights_only=True)
        except pickle.UnpicklingError:
            harmless = [each for name in _others(source) if (each := _harmless(name)) is not None]
            if not harmless:
                raise
    with _allowed([*_values(), *harmless]):
        return torch.load(_opened(source), map_location=map_location, weights_only=True)


def not_allowed(source: Path | bytes) -> list[str]:
    """Dotted names of the classes and functions in a file that `read` will not touch."""
    with _allowed(_values()):
        return sorted(name for name in _others(source) if _harmless(name) is None)


def check(data: Any, what: str) -> None:
    """Check that `data` could be read again, by trying it with all that is no tensor or plain value.

    Raises:
        UnreadableState: it could not; the message says what is where, and what to do.
    """
    found = [*_unreadable(data, what, set())]
    if not found:
        return
    listed = "; ".join(f"{place} is a {_name(type(value))}" for place, value in found[:_MANY])
    more = f"; and {len(found) - _MANY} more" if len(found) > _MANY else ""
    raise UnreadableState(
        f"A checkpoint could not be read again: {listed}{more}; expected tensors, numbers, strings, dates, paths, "
        "enumerations and containers of these, since reading runs no code. Keep such values in the state, or allow the "
        "class, before training and before every resume: "
        f"torch.serialization.add_safe_globals([{type(found[0][1]).__name__}])."
    )


def _unreadable(data: Any, place: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """What in `data` is neither plain nor comes back, each with its place."""
    if type(data) in _PLAIN or id(data) in seen or (type(data) in _TENSORS and not vars(data)):
        return
    seen.add(id(data))
    if type(data) is defaultdict:
        yield from _unreadable(data.default_factory, f"the default_factory of {place}", seen)
    if type(data) in (dict, OrderedDict, defaultdict, Counter):
        for key, value in data.items():
            yield from _unreadable(key, f"the key {key!r} of {place}", seen)
            yield from _unreadable(value, f"{place}[{key!r}]", seen)
    elif type(data) in (list, tuple, deque):
        for number, value in enumerate(data):
            yield from _unreadable(value, f"{place}[{number}]", seen)
    elif isinstance(data, torch.Tensor) and type(data) not in _TENSORS:
        if id(type(data)) not in seen and not _comes_back(data):  # one of each class: it may be large
            yield place, data
        seen.add(id(type(data)))
    elif not (type(data) is np.ndarray and data.dtype.kind in _NUMBERS) and not _comes_back(data):
        yield place, data


def _comes_back(value: Any) -> bool:
    buffer = io.BytesIO()
    try:
        _save(value, buffer)
        read(buffer.getvalue())
    except Exception:  # whatever a class of the user's raises when it is pickled or made
        return False
    return True


_MADE_WHOLE: dict[type, Any] = {
    deque: lambda whole: (deque, ([*whole], whole.maxlen)),
    defaultdict: lambda whole: (defaultdict, (whole.default_factory, dict(whole))),
}
"""Containers that pickle makes empty and then fills: torch's reader fills none, so they are made with their content."""
_TABLE: Any = ChainMap(_MADE_WHOLE, copyreg.dispatch_table)


class _Pickler(pickle.Pickler):
    dispatch_table = _TABLE


# torch takes what has the members of the module `pickle` that it needs.
_AS_PICKLE = SimpleNamespace(__name__="pickle", Pickler=_Pickler)


def _save(data: Any, handle: Any) -> None:
    torch.save(data, handle, pickle_module=_AS_PICKLE)


_TENSORS = (torch.Tensor, torch.nn.Parameter)
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype, torch.device, torch.Size,
)  # fmt: skip
_NUMBERS = "biufc"
_VALUES = (
    deque, defaultdict, frozenset, int, float, str, list, dict,
    datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone,
    PurePosixPath, PosixPath, PureWindowsPath, WindowsPath,
    decimal.Decimal, fractions.Fraction, uuid.UUID,
)  # fmt: skip
"""What may be made beside torch's own: values. (`int` to `dict`: what a `defaultdict` fills its gaps with.)"""


def _others(source: Path | bytes) -> list[str]:
    """Names of what is in a file and not allowed at this moment."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(_opened(source))
    except (ValueError, RuntimeError):  # torch's format of before 1.6, or broken
        return []


def _opened(source: Path | bytes) -> Path | io.BytesIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source


_permission = threading.RLock()


@contextlib.contextmanager
def _allowed(kinds: Iterable[Any]) -> Iterator[None]:
    """Allow classes for a moment; those that the user allowed stay so afterwards. For one thread at a time."""
    with _permission:
        for_the_moment = set(kinds) - set(torch.serialization.get_safe_globals())
        with torch.serialization.safe_globals([*for_the_moment]):
            yield


def _values() -> list[Any]:
    return [*_VALUES, *_numpy_globals(), *_projectors()]


def _harmless(name: str) -> type | None:
    """The enumeration or named tuple of that name, where its module is imported already: these hold values."""
    module, _, own = name.rpartition(".")
    found = getattr(sys.modules.get(module), own, None)
    if not isinstance(found, type):
        return None
    named_tuple = issubclass(found, tuple) and hasattr(found, "_fields") and hasattr(found, "_make")
    return found if named_tuple or issubclass(found, enum.Enum) else None


def _numpy_globals() -> list[Any]:
    """Return what numpy's generator state, and a rate that was computed with numpy, are made of; all of it is data."""
    kinds = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?USMm"}
    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    return [multiarray._reconstruct, multiarray.scalar, np.ndarray, np.dtype, *kinds]


_PROJECTORS = (
    ("galore_torch.galore_projector", "GaLoreProjector"),
    ("apollo_torch.svd_projector", "GaLoreProjector"),
    ("apollo_torch.random_projector", "GradientProjector"),
)


def _projectors() -> list[Any]:
    """Return the classes that GaLore and APOLLO keep in their state: numbers and a matrix each.

    Only where the package is imported already, by the optimizer that the state is for.
    """
    return [getattr(sys.modules[module], name) for module, name in _PROJECTORS if module in sys.modules]


def _name(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
