"""The names that a script takes from `transformers` or, after one changed import, from `onward`."""

from __future__ import annotations

import importlib
from typing import Any

LIBRARIES = ("transformers", "onward")


class Library:
    """The public names of one library under test, as attributes."""

    def __init__(self, name: str) -> None:
        """Import `name`, one of `LIBRARIES`."""
        if name not in LIBRARIES:
            raise ValueError(f"got library {name!r}, expected one of {LIBRARIES}")
        self.name = name
        self.module = importlib.import_module(name)

    def __getattr__(self, attribute: str) -> Any:
        """`lib.Trainer` is the library's `Trainer`."""
        return getattr(self.module, attribute)
