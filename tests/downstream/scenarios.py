"""The scripts, one per trainer and way of using it. What they import lies inside them: after the swap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Scenario:
    """A script, what it imports, and whether it is left out of the quick tests."""

    script: Callable[[Any], dict[str, Any]]
    imports: tuple[str, ...]
    quick: bool = False


SCENARIOS: dict[str, Scenario] = {}


def scenario(*imports: str, quick: bool = False) -> Callable[[Callable[[Any], dict[str, Any]]], Any]:
    """Register a script under its own name."""

    def register(script: Callable[[Any], dict[str, Any]]) -> Any:
        SCENARIOS[script.__name__] = Scenario(script, imports, quick)
        return script

    return register


from . import on_sentences, on_trl  # noqa: E402, F401
