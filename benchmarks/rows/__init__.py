"""The rows: module names below this package, in the order of the table."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.result import Result, Settings

ROWS = {
    "overhead": "time per optimizer step over a hand-written loop",
    "language": "tokens per second and peak memory on sequences of different lengths",
    "gpt2": "GPT-2 124M at 1024 tokens: tokens per second, share of the chip's peak, memory, host syncs",
    "llama_1b": "the same of a billion weights on sequences of different lengths",
    "saving": "time that the loop is held by a save",
    "evaluation": "memory that an evaluation takes",
    "resume": "samples read to continue in the middle of an epoch",
    "accidents": "what is left of a run that is resumed, killed, damaged, short of memory or of disk",
    "imports": "time to import the trainer on top of torch",
}


@dataclass(frozen=True)
class Row:
    """A question and the function that answers it."""

    name: str
    devices: tuple[str, ...]
    measure: Callable[[Settings], list[Result]]


def row(name: str) -> Row:
    """Import the row `name`."""
    if name not in ROWS:
        raise SystemExit(f"got row {name!r}, expected one of: {', '.join(ROWS)}")
    module = importlib.import_module(f"benchmarks.rows.{name}")
    return Row(name, module.DEVICES, module.measure)
