"""Who made a staging folder or a pin, and whether that process is certainly gone.

A process id alone is no identity: ids are reused, repeat after a reboot and repeat in every container. What is recorded
is the host, its boot, the pid namespace, the pid and the start time of the process. Where one of these cannot be
compared, the owner counts as alive: deleting a folder that another machine is writing would lose a checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Owner:
    """Identity of a process, comparable across restarts of process and machine; host, boot and namespace are hashed."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: str

    def token(self) -> str:
        """Return the identity as part of a file name, so that creating the file records it in the same moment."""
        return f"{self.host}-{self.boot}-{self.namespace}-{self.pid}-{self.started}"

    @classmethod
    def from_token(cls, token: str) -> Owner | None:
        """Read what `token` wrote; None for anything else."""
        parts = token.split("-")
        if len(parts) != 5 or not parts[3].isdigit():
            return None
        return cls(parts[0], parts[1], parts[2], int(parts[3]), parts[4])

    def is_gone(self) -> bool:
        """True only when the process certainly no longer runs."""
        here = current()
        if self.host != here.host:
            return False
        if self.boot != here.boot:
            return True
        if self.namespace != here.namespace:
            return False
        return self.started != _start_time(self.pid)


def current() -> Owner:
    """Return the identity of this process (also right after a fork)."""
    pid = os.getpid()
    return Owner(_short(socket.gethostname()), _short(_boot_id()), _short(_namespace(pid)), pid, _start_time(pid))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@lru_cache(maxsize=1)
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


@lru_cache(maxsize=8)
def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return "unknown"


def _start_time(pid: int) -> str:
    """Return the start time of a process in clock ticks since boot, or "gone" when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        return "gone" if Path("/proc/self").exists() else _alive_without_proc(pid)
    except OSError:
        return "unknown"
    fields = stat[stat.rindex(b")") + 2 :].split()
    # A killed process that nobody has waited for yet still has an entry; it writes no more.
    return "gone" if fields[0] in (b"Z", b"X") else fields[19].decode()


def _alive_without_proc(pid: int) -> str:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "gone"
    except PermissionError:
        pass
    return "unknown"
