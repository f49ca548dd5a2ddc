"""The asynchronous writer: one save in flight, in a thread of its own.

A thread, not a process: measured on 240 MB, `torch.save` to a file object, safetensors and digests release the
interpreter lock nearly all the time (held 2 to 20 ms in all), so a process would gain little, and it would need the
state in shared memory, two seconds to start and a guard in the user's script (docs/decisions has the figures).

The thread is no daemon: the interpreter waits for it at exit, so a save in flight is finished then too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onward.checkpoint.snapshot import HostBuffers


@dataclass(frozen=True)
class Outcome:
    """How a save ended: `error` is None when `target` was committed."""

    target: Path
    error: Exception | None = None


class Writer:
    """Runs one save at a time beside the training loop."""

    def __init__(self) -> None:
        self.buffers = HostBuffers()
        self._thread: threading.Thread | None = None
        self._finished: list[Outcome] = []

    def submit(self, target: Path, save: Callable[[], None]) -> None:
        """Run `save` beside the caller, after the save in flight; its outcome can be taken later."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(target, save), name="onward-save", daemon=False)
        self._thread.start()

    def wait(self) -> None:
        """Return once no save is in flight."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def busy(self) -> bool:
        """True while a save is in flight."""
        return self._thread is not None and self._thread.is_alive()

    def take_outcomes(self) -> list[Outcome]:
        """Return the outcomes of saves that ended since the last call."""
        taken = []
        while self._finished:
            taken.append(self._finished.pop(0))
        return taken

    def _run(self, target: Path, save: Callable[[], None]) -> None:
        try:
            save()
        except Exception as error:  # handed to the loop, which counts and reports it
            self._finished.append(Outcome(target, error))
        else:
            self._finished.append(Outcome(target))
