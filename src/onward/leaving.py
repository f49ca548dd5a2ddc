"""When to leave a run early: signals, a time limit, and the agreement of all processes on where.

A signal only sets a flag. The loop asks at *boundaries* (behind every step, behind every evaluation batch) whether it
is time to go. With several processes the flag of one becomes that of all, one boundary later. That takes messages
between hosts, never a wait for an accelerator.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.context
import os
import signal
import threading
import time
from collections.abc import Sequence
from functools import cache
from types import FrameType, TracebackType
from typing import Any

from onward.errors import UsageError

logger = logging.getLogger(__name__)


def parse_signals(names: str) -> list[signal.Signals]:
    """Signals from a comma-separated list of names.

    Raises:
        UsageError: a name is none of this system's.
    """
    wanted = [name.strip().upper() for name in names.split(",") if name.strip()]
    try:
        return [signal.Signals[name] for name in wanted]
    except KeyError as unknown:
        known = ", ".join(s.name for s in signal.Signals)
        raise UsageError(
            f"preemption_signals='{names}' has {unknown}, which is no signal here. Known: {known}."
        ) from None


class OutliveSignals:
    """Lets loader workers outlive signals that were sent to their whole group, as long as their parent trains.

    A `worker_init_fn`. The parent is then able to save; at any other time a signal ends a worker, as it should:
    Python ends those that are left at its own end like this, and waits for them.
    """

    def __init__(self, signals: Sequence[signal.Signals]) -> None:
        self.signals = [*signals, signal.SIGINT]
        self.training: Any = _training_in(os.getpid())

    def __getstate__(self) -> dict[str, Any]:
        # Memory goes to processes that are started, and into no copy.
        is_starting = multiprocessing.context.get_spawning_popen() is not None
        return {"signals": self.signals, "training": self.training if is_starting else None}

    def __call__(self, worker: int) -> None:
        """In the worker, before its first sample."""
        for number in self.signals:
            signal.signal(number, self._note)
            signal.siginterrupt(number, False)  # or reading data would fail in libraries that do not try again

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.training is not None and self.training.value:
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGTERM:
            os._exit(0)  # as torch's own handler does; anything else is an error to the parent
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


@cache
def _training_in(process: int) -> Any:
    """How many runs of a process have handlers for signals, where its loader workers see it."""
    return multiprocessing.RawValue("b", 0)


class Leaving:
    """Notices that the run has to end early. A context manager: its handlers stand only while training.

    Handlers can be set in the main thread alone; elsewhere only the time limit counts.
    """

    def __init__(self, signals: Sequence[signal.Signals], max_seconds: float | None = None) -> None:
        self.signals = [*signals, signal.SIGINT]
        self.max_seconds = max_seconds
        self.reason: str | None = None
        self.interrupted = False
        self._received: int | None = None
        self.save_seconds = 0.0
        """How long the latest save took; the time limit leaves room for one more."""
        self._began = self._last = time.monotonic()
        self._longest = 0.0
        self._previous: dict[int, Any] = {}
        self._agreement: _Agreement | None = None

    def __enter__(self) -> Leaving:
        self._agreement = _Agreement.open()
        if threading.current_thread() is threading.main_thread():
            for number in dict.fromkeys(self.signals):
                self._previous[number] = signal.signal(number, self._note)
            _training_in(os.getpid()).value += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put_back()
        if error is not None:
            return
        if self._agreement is not None:
            self._agreement.close()
        if self._received is not None:  # too late to be acted on here, so whoever handles it outside gets it
            os.kill(os.getpid(), self._received)

    def due(self) -> bool:
        """Whether to leave at this boundary; every process must ask at each of them."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._last)
        self._last = now
        if self.reason is None and self.max_seconds is not None:
            needed = now - self._began + self._longest + self.save_seconds
            if needed >= self.max_seconds:
                self.reason = f"max_train_seconds={self.max_seconds} is about to be reached"
        if self._agreement is None:
            return self.reason is not None
        leaves = self._agreement.due(self.reason is not None)
        if leaves and self.reason is None:
            self.reason = "another process was asked to leave"
        return leaves

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.interrupted:
                self._put_back()
                self._received = None
                raise KeyboardInterrupt
            self.interrupted = True
        self._received = number
        self.reason = self.reason or f"{signal.Signals(number).name} was received"
        # Not through logging: its lock may be held by what was interrupted.
        os.write(2, f"\n{self.reason}: saving at the next boundary, then leaving.\n".encode())

    def _put_back(self) -> None:
        if self._previous:
            _training_in(os.getpid()).value -= 1
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class _Agreement:
    """Lets the processes of a run leave at the same boundary.

    At each boundary every process sends its flag to the others without waiting, and reads the outcome of the boundary
    before, which all have passed by then. So all learn of a flag at the same boundary, one later than it was raised.
    The exchange goes between hosts (gloo) in a group of its own; no accelerator is waited for.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self._sent: tuple[Any, Any] | None = None

    @classmethod
    def open(cls) -> _Agreement | None:
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return None
        return cls(dist.new_group(backend="gloo"))

    def due(self, wanted: bool) -> bool:
        import torch
        import torch.distributed as dist

        if self._sent is not None:
            flag, work = self._sent
            work.wait()
            if bool(flag):
                self._sent = None
                return True
        flag = torch.tensor(int(wanted))
        self._sent = flag, dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return False

    def close(self) -> None:
        import torch.distributed as dist

        if self._sent is not None:
            self._sent[1].wait()
        dist.destroy_process_group(self._group)
