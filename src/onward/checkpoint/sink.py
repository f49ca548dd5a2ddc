"""Files that are written beside training, at the least cost to it.

What a writer takes from training is processor time and memory bandwidth, so that each byte is touched as seldom as can
be: copied once into an aligned block, hashed while it lies there, and taken from there by the disk itself (`O_DIRECT`).
Through the page cache it would be copied by the kernel, which also would have to find memory for it, write it back, and
read it again for the digest. File systems that refuse `O_DIRECT` are written to through the page cache.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onward.checkpoint.digest import ALGORITHMS, CURRENT, FileRecord

BLOCK = 1 << 23
"""Bytes written at once; whole pages. Smaller files and the last piece of larger ones go through the page cache."""


class Writable(Protocol):
    """As much of a binary file as `torch.save` needs."""

    def write(self, data: Any, /) -> int:
        """Take a buffer of bytes; return its length."""

    def flush(self) -> None:
        """Hand on what is held back."""


Create = Callable[[Path], AbstractContextManager[Writable]]
"""Opens a new file for writing."""


def create_plain(path: Path) -> AbstractContextManager[Writable]:
    """Open an ordinary file; who seals the checkpoint reads and flushes it."""
    return open(path, "wb")


class Sinks:
    """The large files of one checkpoint, written one after another, and what the manifest has to record about them."""

    def __init__(self) -> None:
        self.records: dict[Path, FileRecord] = {}
        # Shared memory, though nobody shares it: a fork (loader workers) while the disk reads private memory directly
        # could hand the page to the child (open(2), O_DIRECT).
        self._block = np.frombuffer(mmap.mmap(-1, BLOCK), np.uint8)

    @contextlib.contextmanager
    def create(self, path: Path) -> Iterator[Writable]:
        """Open a new file; once the block of code ends it is on disk and recorded."""
        with open(path, "wb", buffering=0) as file:
            sink = _Sink(file, self._block)
            yield sink
            self.records[path] = sink.finish()


class _Sink:
    """One file."""

    def __init__(self, file: Any, block: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self._file = file
        self._block = block
        self._filled = 0
        self._size = 0
        self._digest = ALGORITHMS[CURRENT]()
        self._direct = False

    def write(self, data: Any, /) -> int:
        rest = np.frombuffer(data, np.uint8) if len(data) else self._block[:0]
        count = len(rest)
        while len(rest):
            taken = min(len(rest), len(self._block) - self._filled)
            # By numpy, which lets go of the interpreter lock.
            np.copyto(self._block[self._filled : self._filled + taken], rest[:taken])
            self._filled += taken
            rest = rest[taken:]
            if self._filled == len(self._block):
                self._set_direct(True)
                self._drain()
        return count

    def flush(self) -> None:
        """Nothing: a part of a block cannot be written directly; `finish` flushes."""

    def finish(self) -> FileRecord:
        """Write the last piece, flush everything to disk, and return what was written."""
        self._set_direct(False)
        self._drain()
        os.fsync(self._file.fileno())
        return FileRecord(self._size, self._digest.hexdigest())

    def _drain(self) -> None:
        rest = self._block.data[: self._filled]
        self._digest.update(rest)
        self._size += len(rest)
        self._filled = 0
        while len(rest):
            rest = rest[self._write_some(rest) :]

    def _write_some(self, piece: memoryview) -> int:
        try:
            return int(self._file.write(piece))
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
        self._set_direct(False)  # larger alignment than a page, or a call that ended within one
        return int(self._file.write(piece))

    def _set_direct(self, wanted: bool) -> None:
        if wanted == self._direct or not hasattr(os, "O_DIRECT"):
            return
        import fcntl

        try:
            flags = fcntl.fcntl(self._file, fcntl.F_GETFL) & ~os.O_DIRECT
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | (os.O_DIRECT if wanted else 0))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return  # refused by this file system
        self._direct = wanted
