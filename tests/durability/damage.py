"""What can happen to a file of a checkpoint."""

from __future__ import annotations

from pathlib import Path


def truncate(file: Path) -> None:
    """Half of it is missing."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    """It is there, without content."""
    file.write_bytes(b"")


def delete(file: Path) -> None:
    """It is gone."""
    file.unlink()


def flip(file: Path) -> None:
    """One bit of it is another."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x04
    file.write_bytes(data)
