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
Mark = tuple[Any, Any, Any]

_STATE_BYTES = 4 * 625  # MT19937, numpy's and Python's: 624 words and the position
_TORCH_HEAD, _TORCH_TAIL = 20, 24  # torch's: before the words seed and position, behind them the kept normal numbers


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


def _memory(address: int, size: int = _STATE_BYTES) -> memoryview:
    """The state of a Mersenne Twister where it lies. Copying from this view takes a tenth of asking the generator."""
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


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


def _torch_memory(generator: torch.Generator) -> memoryview | None:
    """Where a CPU generator of torch keeps its state, if it does so as libtorch's is known to.

    ``get_state()`` makes a tensor, which takes most of a microsecond, and its bytes are slow to get at.
    """
    address = getattr(generator, "_cdata", None)
    if not isinstance(address, int):
        return None
    state = generator.get_state().numpy().tobytes()  # with 24 bytes before the words, and eight for each of these
    words = np.frombuffer(state, dtype=np.uint64, count=624, offset=24).astype(np.uint32).tobytes()
    at = ctypes.string_at(address, 256).find(words[:64])
    if at < _TORCH_HEAD or ctypes.string_at(address + at, len(words)) != words:
        return None
    return _memory(address + at - _TORCH_HEAD, _TORCH_HEAD + len(words) + _TORCH_TAIL)


def _holds_all(memory: memoryview, generator: torch.Generator) -> bool:
    """Whether this memory is all that a generator's draws depend on, tried out: every draw shows, and can be undone."""
    for dtype in (torch.float, torch.double):
        # Normal numbers come in pairs: the second of each is kept, and taken without moving the words.
        for draw in (torch.rand, torch.randn, torch.randn):
            before = bytes(memory)
            first, after = draw(1, generator=generator, dtype=dtype), bytes(memory)
            memory[:] = before
            again = draw(1, generator=generator, dtype=dtype)
            if after == before or not torch.equal(again, first) or bytes(memory) != after:
                return False
    return True


def _torch_memory_if_usual() -> memoryview | None:
    trial = torch.Generator().manual_seed(1)
    memory = _torch_memory(trial)
    return _torch_memory(torch.default_generator) if memory is not None and _holds_all(memory, trial) else None


_PYTHON_MEMORY = _python_memory() if sys.implementation.name == "cpython" else None
_TORCH_MEMORY = _torch_memory_if_usual()
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
        torch.default_generator.get_state().numpy().tobytes() if _TORCH_MEMORY is None else bytes(_TORCH_MEMORY),
        # Normal numbers come in pairs, of which the second is kept beside the words.
        random.getstate() if _PYTHON_MEMORY is None else (bytes(_PYTHON_MEMORY), random._inst.gauss_next),  # type: ignore[attr-defined]
        np.random.get_state() if numpy_memory is None else bytes(numpy_memory),
    )


def moved(since: Mark) -> bool:
    """Whether anything was drawn from the global CPU generators since `mark()`."""
    now = mark()
    if now == since:
        return False
    if now[1:] != since[1:] or _TORCH_MEMORY is None:
        return True
    # Bytes that mean nothing may differ, where somebody drew and put the state back.
    _TORCH_MEMORY[:] = since[0]
    then = torch.default_generator.get_state()
    _TORCH_MEMORY[:] = now[0]
    return not torch.equal(then, torch.default_generator.get_state())


def rewind(to: Mark) -> None:
    """Put the global CPU generators back to where `mark()` saw them."""
    torch_state, python_state, numpy_state = to
    if _TORCH_MEMORY is None:
        torch.default_generator.set_state(torch.frombuffer(bytearray(torch_state), dtype=torch.uint8))
    else:
        _TORCH_MEMORY[:] = torch_state
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
