"""Every scenario, by name."""

from . import combinations, customized, data, evaluating, kinds, processes, settings  # noqa: F401  (they register themselves)
from .registry import SCENARIOS

__all__ = ["SCENARIOS"]
