"""Random numbers that a data set or collator draws.

Augmentation usually draws from the global generators of torch, numpy and Python. Who fetches a sample (this process,
one of two workers, a prefetcher, a resumed run) must not change what it draws, and the draws must not move the stream
that the model's dropout uses. So each sample gets global generators that are seeded from (seed, epoch, position), and
afterwards the stream of the process is put back as it was.

In a worker process that is simply done for every sample. In the training process it would cost as much as a small
model's step, and most data sets draw nothing: there, samples are fetched as they are, and only if a generator
has moved are they fetched again under their own seeds, from then on always so.
"""

from __future__ import annotations

import ctypes
import hashlib
import random
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")
Streams = tuple[torch.Tensor, Any, Any]
Mark = tuple[torch.Tensor, Any, Any]

_STATE_BYTES = 4 * 625  # MT19937, numpy's and Python's: 624 words and the position


def key_of(*parts: int) -> int:
    """A 64-bit seed from a tuple of integers, without the correlations that sums and products would have."""
    text = ":".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def seed_streams(key: int) -> None:
    """Seed the global CPU generators of torch, numpy and Python."""
    torch.default_generator.manual_seed(key)
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)


def capture() -> Streams:
    """The states of the global CPU generators."""
    return torch.default_generator.get_state(), random.getstate(), np.random.get_state()


def restore(streams: Streams) -> None:
    """Put the global CPU generators back to `capture()`'s states."""
    torch.default_generator.set_state(streams[0])
    random.setstate(streams[1])
    np.random.set_state(streams[2])


def to_plain(streams: Streams) -> dict[str, Any]:
    """JSON-able form of `capture()`'s states."""
    torch_state, (version, words, gauss), (name, keys, position, has_gauss, cached) = streams
    return {
        "torch": torch_state.numpy().tobytes().hex(),
        "python": [version, list(words), gauss],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
    }


def from_plain(plain: dict[str, Any]) -> Streams:
    """`to_plain`'s inverse."""
    version, words, gauss = plain["python"]
    name, keys, position, has_gauss, cached = plain["numpy"]
    return (
        torch.frombuffer(bytearray.fromhex(plain["torch"]), dtype=torch.uint8),
        (version, tuple(words), gauss),
        (name, np.array(keys, dtype=np.uint32), position, has_gauss, cached),
    )


def _memory(address: int) -> memoryview:
    """The state of a Mersenne Twister where it lies. Copying from this view takes a tenth of asking the generator."""
    return memoryview((ctypes.c_char * _STATE_BYTES).from_address(address)).cast("B")


def _python_memory() -> memoryview | None:
    """Where Python's global generator keeps its state, if it does so as CPython's is known to.

    ``random.getstate()`` makes a tuple of 625 integers, which takes 12 µs.
    """
    generator = getattr(random, "_inst", None)
    if generator is None or type(generator).__basicsize__ < object.__basicsize__ + _STATE_BYTES:
        return None
    memory = _memory(id(generator) + object.__basicsize__)
    _, words, _ = random.getstate()
    expected = np.array([words[-1], *words[:-1]], dtype=np.uint32).tobytes()
    return memory if memory == expected else None


_PYTHON_MEMORY = _python_memory() if sys.implementation.name == "cpython" else None
_numpy_seen: tuple[Any, memoryview | None] = (None, None)


def _numpy_memory() -> memoryview | None:
    """Where numpy's global generator keeps its state, if it is of the usual kind. ``get_state()`` takes 35 µs."""
    global _numpy_seen
    generator = np.random.mtrand._rand._bit_generator
    if generator is not _numpy_seen[0]:
        usual = type(generator) is np.random.MT19937
        _numpy_seen = generator, _memory(generator.ctypes.state_address) if usual else None
    return _numpy_seen[1]


def mark() -> Mark:
    """A cheap picture of the global CPU generators."""
    numpy_memory = _numpy_memory()
    return (
        torch.default_generator.get_state(),
        # Normal numbers come in pairs, of which the second is kept beside the words.
        random.getstate() if _PYTHON_MEMORY is None else (bytes(_PYTHON_MEMORY), random._inst.gauss_next),  # type: ignore[attr-defined]
        np.random.get_state() if numpy_memory is None else bytes(numpy_memory),
    )


def moved(since: Mark) -> bool:
    """Whether anything was drawn from the global CPU generators since `mark()`."""
    now = mark()
    # As bytes: `torch.equal` takes longer than all the rest of this, and an array around them as long as a copy.
    return now[1:] != since[1:] or _bytes_of(now[0]) != _bytes_of(since[0])


def _bytes_of(state: torch.Tensor) -> bytes:
    return ctypes.string_at(state.data_ptr(), state.numel())  # states are of bytes, one behind another


def rewind(to: Mark) -> None:
    """Put the global CPU generators back to where `mark()` saw them."""
    torch_state, python_state, numpy_state = to
    torch.default_generator.set_state(torch_state)
    if _PYTHON_MEMORY is None:
        random.setstate(python_state)
    else:
        _PYTHON_MEMORY[:], random._inst.gauss_next = python_state  # type: ignore[attr-defined]
    memory = _numpy_memory()
    if memory is not None and isinstance(numpy_state, bytes):
        memory[:] = numpy_state
    else:
        np.random.set_state(numpy_state)


def protected(work: Callable[[], T]) -> T:
    """Run `work` and put the global generators back as they were."""
    streams = capture()
    try:
        return work()
    finally:
        restore(streams)
