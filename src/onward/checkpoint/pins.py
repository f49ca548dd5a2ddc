"""Pins: while a checkpoint is pinned (being uploaded, say), rotation leaves it alone.

A pin is an empty file beside the checkpoints whose name tells its owner, so other processes see it too, and the pin of
a process that died does not hold a checkpoint for ever.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from onward.checkpoint import layout, owner


@contextlib.contextmanager
def pin(checkpoint: str | Path) -> Iterator[Path]:
    """Keep rotation from deleting `checkpoint` inside the `with` block; may be nested and used by many at once."""
    path = Path(checkpoint)
    folder = path.parent / layout.PINS
    mark = folder / f"{path.name}.{owner.current().token()}.{uuid.uuid4().hex[:8]}"
    folder.mkdir(exist_ok=True)
    mark.touch()
    try:
        yield path
    finally:
        mark.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # fails, as it should, while somebody else's pin is there


def is_pinned(checkpoint: str | Path) -> bool:
    """True while a living process (or one that cannot be seen from here) pins the checkpoint."""
    path = Path(checkpoint)
    return any(_holds(mark) for mark in (path.parent / layout.PINS).glob(f"{path.name}.*"))


def _holds(mark: Path) -> bool:
    process = owner.Owner.from_token(mark.name.split(".")[1])
    if process is None or not process.is_gone():
        return True
    mark.unlink(missing_ok=True)
    return False
