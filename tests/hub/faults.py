"""What can go wrong on the way to a Hub, said per request: ``Fault("PUT /lfs", "cut", times=1)``."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["status", "cut", "hang", "slow", "hold", "late"]


@dataclass
class Fault:
    """Do `kind` to the next `times` requests whose ``METHOD path`` matches `where`, after letting `skip` pass.

    ``status``: answer with that status and `headers`. ``cut``: read or send half of the body, then close.
    ``late``: do what was asked, then close without an answer. ``slow``: sleep `seconds` before the answer. ``hold``:
    answer when `gate` is set. ``hang``: never answer.
    """

    where: str
    kind: Kind
    times: int = 1_000_000
    skip: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    hits: int = 0
    gate: threading.Event = field(default_factory=threading.Event)


class Faults:
    """The faults of one server; thread-safe, because requests come in parallel."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def pick(self, request: str) -> Fault | None:
        """The fault that this request meets, used up by one."""
        with self._lock:
            for fault in self._faults:
                if fault.times <= 0 or not re.search(fault.where, request):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                fault.hits += 1
                return fault
        return None
