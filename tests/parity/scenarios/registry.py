"""The list of scenarios."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Script = Callable[[Any], dict[str, Any]]


@dataclass(frozen=True)
class Scenario:
    """A training script as a function of a `Stage`, and the number of processes that run it."""

    script: Script
    ranks: int = 1


SCENARIOS: dict[str, Scenario] = {}


def add(name: str, script: Script, ranks: int = 1) -> None:
    """Register `script`; a name stands for one scenario."""
    if name in SCENARIOS:
        raise ValueError(f"two scenarios named {name!r}")
    SCENARIOS[name] = Scenario(script, ranks)


def scenario(script: Script) -> Script:
    """Register a function under its own name."""
    add(script.__name__, script)
    return script


def ranks(count: int) -> Callable[[Script], Script]:
    """Register a function that runs in `count` processes."""

    def register(script: Script) -> Script:
        add(script.__name__, script, count)
        return script

    return register
