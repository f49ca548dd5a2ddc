"""Peers in processes of their own: for memory, which only a whole process has, and so that no import weighs on another.

A row starts one process per peer and asks them in turns. The process imports the row's module and calls
`ROW.answer(peer, question)` for each question; questions and answers are JSON. A run that is asked again before it has
ended, to go on for a while, calls `pause`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]


class PeerFailedError(Exception):
    """A peer's process ended instead of answering."""


class Peer:
    """One peer's process."""

    def __init__(self, row: str, name: str) -> None:
        """Start it; it imports what it needs when it is first asked."""
        self.name = name
        answers, out = os.pipe()
        # Libraries print to stdout; answers have a pipe of their own.
        serve = "from benchmarks.peers import serve; serve()"  # by `-m` this module would be there twice
        command = [sys.executable, "-c", serve, row, name, str(out)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[out], text=True
        )
        os.close(out)
        self.answers: IO[str] = os.fdopen(answers)

    def ask(self, **question: Any) -> dict[str, Any]:
        """Ask and wait for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.answers.readline()
        if not line:
            raise PeerFailedError(f"{self.name} ended with status {self.process.wait()} when asked {question}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.answers.close()


@contextlib.contextmanager
def peers(row: str, names: list[str]) -> Iterator[dict[str, Peer]]:
    """One process for each of `names`, answered by `benchmarks.rows.ROW.answer`."""
    started = {name: Peer(row, name) for name in names}
    try:
        yield started
    finally:
        for peer in started.values():
            peer.close()


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return _status("VmRSS")


def clean_up() -> None:
    """Give back what earlier work in this process left: garbage in cycles, and freed memory that malloc holds (glibc).

    What a run before this one left behind is no part of the most that this one held.
    """
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # a malloc that is not glibc's
            ctypes.CDLL(None).malloc_trim(0)


def forget_peak() -> None:
    """Let `peak` begin anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most memory in bytes that this process held since `forget_peak`."""
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def serve() -> None:
    """In a peer's process: answer questions until there are no more."""
    row, name, out = sys.argv[1:]
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    module = importlib.import_module(f"benchmarks.rows.{row}")
    global _answers
    _answers = os.fdopen(int(out), "w")
    while (question := _next_question()) is not None:
        _reply(module.answer(name, question))


def pause(answer: dict[str, Any]) -> None:
    """From inside a run: answer, and go on when asked again; the process ends where nobody asks."""
    _reply(answer)
    if _next_question() is None:
        sys.exit()


_answers: IO[str]


def _reply(answer: dict[str, Any]) -> None:
    _answers.write(json.dumps(answer) + "\n")
    _answers.flush()


def _next_question() -> dict[str, Any] | None:
    line = sys.stdin.readline()
    return json.loads(line) if line else None
