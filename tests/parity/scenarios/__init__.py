"""Every scenario, by name."""

from . import (  # noqa: F401  (they register themselves)
    arguments,
    combinations,
    customized,
    data,
    drawn,
    evaluating,
    kinds,
    methods,
    processes,
    scripts,
    settings,
    steering,
)
from .registry import SCENARIOS

__all__ = ["SCENARIOS"]
