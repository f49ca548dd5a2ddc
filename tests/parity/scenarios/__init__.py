"""Every scenario, by name."""

from . import arguments, combinations, customized, data, evaluating, kinds, methods, processes, scripts, settings  # noqa: F401  (they register themselves)
from .registry import SCENARIOS

__all__ = ["SCENARIOS"]
