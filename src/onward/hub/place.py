"""Where a run pushes to, how hard it tries, and what became of each push."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["waiting", "running", "pushed", "replaced", "failed"]


@dataclass(frozen=True)
class HubPlace:
    """A repository (``name`` or ``user/name``), its branch (None: main), and the token to use (None: the login's)."""

    repo: str
    token: str | None = field(default=None, repr=False)
    revision: str | None = None
    private: bool | None = None

    def to_request(self) -> dict[str, Any]:
        """The part of a worker's request that says where and with what right."""
        return {"repo": self.repo, "token": self.token, "revision": self.revision, "private": self.private}

    @property
    def title(self) -> str:
        """``user/name`` or ``user/name@branch``."""
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


@dataclass(frozen=True)
class Patience:
    """How long to try. All values are seconds but `attempts`, the number of tries for one push.

    `stall` ends a connection on which no byte moves; waits between tries double from `first_wait` to `longest_wait`, or
    are what the server asked for, up to `longest_asked`.
    """

    attempts: int = 5
    first_wait: float = 2.0
    longest_wait: float = 60.0
    longest_asked: float = 600.0
    stall: float = 120.0

    def wait(self, attempt: int, asked: float | None) -> float:
        """Seconds to wait after the `attempt`-th try (from 1) failed."""
        if asked is not None:
            return min(asked, self.longest_asked)
        return float(min(self.first_wait * 2 ** (attempt - 1), self.longest_wait))


@dataclass
class Outcome:
    """What became of one push: `reason` says why not (or what was left out), `url` is the commit's page."""

    name: str
    source: str
    target: str
    status: Status = "waiting"
    reason: str = ""
    url: str = ""
    oid: str = ""
    message: str = ""
    attempts: int = 0
    seconds: float = 0.0
    sent: int = 0
    total: int = 0
