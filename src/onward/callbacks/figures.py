"""What the displays show: where a run stands, how fast it goes, and how to write that for people."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from onward.state import TrainerState

_SHORT = {"learning_rate": "lr"}
_HIDDEN = frozenset({"epoch", "step", "total_flos"})
"""Keys that a log line shows elsewhere or not at all."""
SPARK_LENGTH = 16


@dataclass
class Picture:
    """Where a run stands at one moment."""

    name: str = "training"
    """What is running: ``training``, or the name of the trial."""
    step: int = 0
    max_steps: int = 0
    epoch: float | None = None
    epochs: int = 0
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=SPARK_LENGTH))
    """The last logged training losses, oldest first."""
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    steps_per_second: float | None = None
    elapsed: float = 0.0
    """Seconds since training began in this process."""
    left: float | None = None
    """Seconds that the rest will take, if it goes on like this."""
    memory: str = ""
    evaluation: tuple[int, int | None] | None = None
    """Batches done and in all (None: unknown) of the evaluation that is running; None if none is."""
    best: str = ""
    """The best metric so far, in words."""
    ending: str = ""
    """Empty while it runs; then ``done``, ``stopped`` or ``failed``."""
    reason: str = ""
    """What ended a run that failed."""


class Pace:
    """Speed of a run, from the steps that this process did.

    The first step does not count: it pays for compilation, for filling the allocator and for starting workers.
    """

    WINDOW = 10.0
    """Seconds over which the speed that is shown is averaged."""

    def __init__(self, step: int) -> None:
        self._began = time.monotonic()
        self._first_step = step
        self._origin: tuple[float, int] | None = None
        self._recent: deque[tuple[float, int]] = deque()

    def mark(self, step: int, now: float) -> None:
        """Note that `step` was reached at `now` (of `time.monotonic`)."""
        if step <= self._first_step:
            return
        if self._origin is None:
            self._origin = (now, step)
        self._recent.append((now, step))
        while len(self._recent) > 2 and now - self._recent[0][0] > self.WINDOW:
            self._recent.popleft()

    def forget_recent(self) -> None:
        """An evaluation or a save lies behind: the speed of steps is to be measured anew."""
        self._recent.clear()

    def elapsed(self, now: float) -> float:
        """Seconds since training began in this process."""
        return now - self._began

    def steps_per_second(self) -> float | None:
        """Speed of the last seconds; None before two steps were seen."""
        if len(self._recent) < 2:
            return self._overall(self._recent[-1]) if self._recent else None
        return _rate(self._recent[0], self._recent[-1])

    def left(self, step: int, max_steps: int, now: float) -> float | None:
        """Seconds to `max_steps`, at the pace of the whole run: evaluations and saves to come are thereby included."""
        rate = self._overall((now, step))
        return (max_steps - step) / rate if rate and max_steps >= step else None

    def _overall(self, until: tuple[float, int]) -> float | None:
        return _rate(self._origin, until) if self._origin is not None else None


def _rate(start: tuple[float, int], end: tuple[float, int]) -> float | None:
    seconds, steps = end[0] - start[0], end[1] - start[1]
    return steps / seconds if seconds > 0 and steps > 0 else None


def best_in_words(state: TrainerState, metric: str | None) -> str:
    """``best eval_loss 1.98 at step 800``, or an empty string."""
    if state.best_metric is None:
        return ""
    name = metric or "metric"
    name = name if name.startswith("eval_") else f"eval_{name}"
    at = f" at step {state.best_global_step:,}" if state.best_global_step else ""
    return f"best {name} {number(state.best_metric)}{at}"


def cells(logs: dict[str, Any], max_length: int) -> list[tuple[str, str]]:
    """Names and values of a log line for people, without what is shown elsewhere."""
    shown = {name: value for name, value in logs.items() if name not in _HIDDEN}
    return [(_SHORT.get(name, name), value_of(value, max_length)) for name, value in shown.items()]


def value_of(value: Any, max_length: int) -> str:
    """A logged value for people: four significant digits, and no text longer than `max_length`."""
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if isinstance(value, float):
        return number(value)
    text = str(value).replace("\n", "⏎")
    return text if len(text) <= max_length else f"{text[: max(max_length - 1, 0)]}…"


def number(value: float) -> str:
    """Four significant digits, or all digits of a large number; whole numbers as such."""
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    if 1e4 <= abs(value) < 1e9 or value == int(value):
        return f"{value:.0f}" if abs(value) < 1e9 else f"{value:.4g}"
    return f"{value:#.4g}".removesuffix(".")


def count(value: float) -> str:
    """``18,300`` as ``18.3k``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """``3725`` as ``1:02:05``, ``65`` as ``1:05``, ``90061`` as ``1d 1:01:01``."""
    whole = int(seconds + 0.5)
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    clock = f"{hours}:{minutes:02d}:{rest:02d}" if hours or days else f"{minutes}:{rest:02d}"
    return f"{days}d {clock}" if days else clock


def size(num_bytes: float) -> str:
    """Bytes for people, in powers of 1024."""
    for unit in ("B", "KB", "MB"):
        if num_bytes < 1024:
            return f"{num_bytes:.3g} {unit}" if num_bytes < 1000 else f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} GB" if num_bytes < 100 else f"{num_bytes:.0f} GB"


def spark(values: deque[float] | list[float], blocks: str = "▁▂▃▄▅▆▇█") -> str:
    """A curve one line high; what is not finite is a gap."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(blocks[round((value - low) * scale)] if math.isfinite(value) else " " for value in values)


def memory() -> str:
    """Memory in use now: of the accelerator (with its peak) where there is one, else of this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        # Counters of the allocator: no wait for the device.
        return f"GPU {size(torch.cuda.memory_allocated())}, peak {size(torch.cuda.max_memory_allocated())}"
    resident = _resident_bytes()
    return size(resident) if resident else ""


def _resident_bytes() -> int | None:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None  # no such file system on this platform
