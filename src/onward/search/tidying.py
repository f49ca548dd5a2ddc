"""Disk stays bounded: checkpoints of trials that ended and are not the best are deleted while the search runs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable
from pathlib import Path

from onward.checkpoint import list_checkpoints, pins, staging

logger = logging.getLogger(__name__)


def tidy(output_dir: str | Path, ended: Iterable[str], best: Iterable[str], keep_trials: str) -> None:
    """Delete the checkpoints of trials that ended.

    Args:
        output_dir: the folder of the search.
        ended: names of the trials that ended.
        best: those that are the best so far.
        keep_trials: ``best``, ``all`` or ``none``.
    """
    if keep_trials == "all":
        return
    spared = set(best) if keep_trials == "best" else set()
    for name in ended:
        folder = Path(output_dir) / name
        if name in spared or not folder.is_dir():
            continue
        for checkpoint in list_checkpoints(folder):
            if not pins.is_pinned(checkpoint.path):  # the Hub is still reading it
                with contextlib.suppress(FileNotFoundError):  # another thread or process of the search was faster
                    staging.remove_checkpoint(checkpoint.path)
        with contextlib.suppress(OSError):  # somebody keeps something else in it
            folder.rmdir()
