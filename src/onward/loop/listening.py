"""Who would notice that a checkpoint is written later than the loop asked for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SAVE_HOOKS = (
    "_save_checkpoint",
    "save_model",
    "_save",
    "_save_optimizer_and_scheduler",
    "_save_scaler",
    "_save_rng_state",
)
_OURS = "onward.hooks.checkpointing"

_IDLE_UNLESS = {
    "TrackioCallback": None,
    "WandbCallback": "_log_model",
    "MLflowCallback": "_log_artifacts",
    "ClearMLCallback": "_log_model",
    "DVCLiveCallback": "_log_model",
}
"""transformers' integrations whose `on_save` does nothing unless this attribute asks for models to be uploaded."""


def hooks_are_overridden(host: object) -> list[str]:
    """Return the names of the save hooks that a subclass, or an assignment to the instance, replaces."""
    own = vars(host)
    return [name for name in SAVE_HOOKS if name in own or getattr(type(host), name).__module__ != _OURS]


def saves_are_listened_to(callbacks: Iterable[Any]) -> list[str]:
    """Return the class names of the callbacks that do something on `on_save`."""
    return [type(callback).__name__ for callback in callbacks if _listens(callback)]


def calls_are_intercepted(handler: Any) -> bool:
    """True when events do not go straight to the callbacks: a handler of another class, or with methods replaced."""
    replaced = "call_event" in vars(handler) or "on_save" in vars(handler)
    return replaced or type(handler).call_event.__module__ != "onward.callbacks.handler"


def _listens(callback: Any) -> bool:
    if "on_save" in vars(callback):
        return True
    definer = next((each for each in type(callback).__mro__ if "on_save" in vars(each)), None)
    if definer is None or definer.__name__ == "TrainerCallback":
        return False
    if definer.__module__.startswith("transformers.integrations") and definer.__name__ in _IDLE_UNLESS:
        attribute = _IDLE_UNLESS[definer.__name__]
        asked = None if attribute is None else getattr(callback, attribute, None)
        return getattr(asked, "value", asked) not in (None, False, "false", "end")
    return True
