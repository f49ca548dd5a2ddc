"""Our classes count as those of transformers, once that is imported.

Scripts ask ``isinstance(callback, transformers.TrainerCallback)`` or remove ``transformers.PrinterCallback`` from a
trainer. transformers' classes cannot be told about ours, and importing them to derive from them would cost two seconds
in scripts that do without. So the bases of ours grow where transformers is there already. Nothing is inherited in
effect: each of our classes defines whatever its namesake does, and comes first.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

_HOMES = ("transformers.trainer_callback", "transformers.trainer_utils", "transformers.integrations.integration_utils")


class Kin:
    """Base of the classes that have a namesake in transformers.

    Python lets a class change its bases only where `object` is not the only one.
    """


def become_kin() -> None:
    """Derive our classes from their namesakes in transformers, if that is imported and they do not yet."""
    modules = [sys.modules[home] for home in _HOMES if home in sys.modules]
    if not modules:
        return
    for ours in list(dict.fromkeys(_ours(Kin))):
        for module in modules:
            theirs = getattr(module, ours.__name__, None)
            if isinstance(theirs, type) and theirs is not ours and not issubclass(ours, theirs):
                # A class that someone derived from both, theirs first, would have no order of bases: leave it alone.
                with contextlib.suppress(TypeError):
                    ours.__bases__ = (*ours.__bases__, theirs)


def _ours(base: type[Any]) -> Iterator[type[Any]]:
    for kind in base.__subclasses__():
        if kind.__module__.startswith("onward."):
            yield kind
            yield from _ours(kind)
