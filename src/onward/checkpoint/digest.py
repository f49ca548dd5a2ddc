"""Digests of files: what the manifest compares to tell whether a file is still what was written.

They find torn writes, bit rot and cut copies, not an attacker, who could rewrite the manifest too. So speed counts, and
XXH3 (https://xxhash.com, 128 bits) runs at the speed of memory: SHA-256 took more processor time than all the rest of
a save, and training pays for that time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

CURRENT = "xxh3_128"
ALGORITHMS: dict[str, Callable[[], Any]] = {CURRENT: xxhash.xxh3_128, "sha256": hashlib.sha256}
"""By the names that manifests record; the second is that of manifests of format 1."""


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and digest (hexadecimal) of one file."""

    size: int
    digest: str


def digest_file(path: Path, algorithm: str = CURRENT, flush: bool = False) -> FileRecord:
    """Read a file and return its record; with `flush` it is flushed to disk too."""
    with open(path, "rb", buffering=0) as handle:
        digest = hashlib.file_digest(handle, ALGORITHMS[algorithm])
        if flush:
            os.fsync(handle.fileno())
        return FileRecord(handle.tell(), digest.hexdigest())
