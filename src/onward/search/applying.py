"""From the hyperparameters of a trial to training arguments, checked as if a user had typed them.

A name is that of an argument (``learning_rate``), or of an entry of one that holds a dictionary
(``lr_scheduler_kwargs.num_cycles``). Names under ``model`` (``model.dropout``, or a dictionary named ``model``) are for
``model_init(trial)`` and no argument; so is any other name that no argument has, with a warning, where there is a
``model_init`` that takes the trial.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
import types
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from onward.arguments import TrainingArguments
from onward.arguments.resolve import ALIASES
from onward.arguments.training_arguments import FORMER_NAMES
from onward.errors import UnknownArgument, UsageError, did_you_mean

logger = logging.getLogger(__name__)

FOR_MODEL = "model"
FIXED = ("output_dir",)
"""Arguments that say where a search keeps its trials, and so cannot differ between them."""

_MISSING = object()


class Overrides:
    """What a trial changed in the arguments, to be taken back before the next one."""

    def __init__(self, args: Any, before: Mapping[str, Any]) -> None:
        now = vars(args)
        self._changes = {
            name: (before.get(name, _MISSING), now.get(name, _MISSING))
            for name in {*before, *now}
            if before.get(name, _MISSING) is not now.get(name, _MISSING)
        }

    def take_back(self, args: Any) -> None:
        """Give `args` the values from before the trial, except those that somebody has changed since."""
        for name, (before, after) in self._changes.items():
            if getattr(args, name, _MISSING) is not after:
                continue
            delattr(args, name) if before is _MISSING else setattr(args, name, before)


def split(args: Any, hyperparameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part what is for the arguments from what is for ``model_init``."""
    known = {each.name for each in dataclasses.fields(args)}
    own = {k: v for k, v in hyperparameters.items() if k.partition(".")[0] in known}
    return own, {k: v for k, v in hyperparameters.items() if k not in own}


def takes_trial(model_init: Any) -> bool:
    """Whether there is a ``model_init`` that is handed the trial."""
    return model_init is not None and bool(inspect.signature(model_init).parameters)


def check_names(args: Any, names: Iterable[str], model_init: Any = None) -> None:
    """Raise for a name that no trial can set, before the first one starts; warn where only `model_init` can read it.

    Raises:
        UnknownArgument: a name is no argument.
        UsageError: it says where the search keeps its trials.
    """
    known = [each.name for each in dataclasses.fields(args)]
    for name in names:
        field = name.partition(".")[0]
        if field == FOR_MODEL:
            continue
        if field not in known:
            hint = f" It is now: {FORMER_NAMES[field]}." if field in FORMER_NAMES else did_you_mean(field, known)
            what = f"A trial sets {name!r}, which is no argument of {type(args).__name__}.{hint} "
            remedy = f"Name what is for model_init(trial) '{FOR_MODEL}.{name}'."
            if field in FORMER_NAMES or not takes_trial(model_init):
                raise UnknownArgument(what + remedy)
            logger.warning("%sIt is left to model_init. %s", what, remedy)
        if field in FIXED:
            raise UsageError(f"A trial sets {field!r}; expected it to stay, since the search keeps its trials there.")


def apply(args: Any, hyperparameters: Mapping[str, Any]) -> Overrides:
    """Set hyperparameters in `args`, all or none.

    Raises:
        UnknownArgument: a name is no argument.
        UsageError: a value has the wrong type or cannot work.
    """
    before = dict(vars(args))
    hints = typing.get_type_hints(type(args))
    check_names(args, hyperparameters)
    try:
        for name, value in hyperparameters.items():
            _set(args, name, value, hints)
        if isinstance(args, TrainingArguments):
            args.__post_init__()  # the same checks and conversions that a user's arguments go through
    except BaseException:
        Overrides(args, before).take_back(args)
        raise
    return Overrides(args, before)


def _set(args: Any, name: str, value: Any, kinds: Mapping[str, Any]) -> None:
    field, _, entry = name.partition(".")
    if entry:
        present = getattr(args, field)
        if present is not None and not isinstance(present, dict):
            raise UsageError(f"A trial sets {name!r}, but {field} is {present!r} and not a dictionary.")
        setattr(args, field, {**(present or {}), entry: value})
        return
    fitted = fit_type(name, kinds.get(field, Any), value)
    setattr(args, field, fitted)
    if field in ALIASES:  # the newer name wins, and still holds what was before the trial
        setattr(args, ALIASES[field], fitted)


def fit_type(name: str, kind: Any, value: Any) -> Any:
    """Return `value` as the type that an argument has; 8.0 is 8 where a whole number is expected.

    Raises:
        UsageError: it is of another type, or not finite.
    """
    if type(value).__module__ in ("numpy", "torch") and callable(getattr(value, "item", None)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"A trial sets {name}={value}; expected a finite number.")
    allowed = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if any(_is(value, each) for each in allowed):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and float in allowed:
        return float(value)
    if isinstance(value, float) and value.is_integer() and int in allowed:
        return int(value)
    wanted = " or ".join(getattr(each, "__name__", str(each)) for each in allowed if each is not type(None))
    raise UsageError(f"A trial sets {name}={value!r}, a {type(value).__name__}; expected {wanted}.")


def _is(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if kind is None or kind is type(None):
        return value is None
    if get_origin(kind) is Literal:
        return any(value == each and type(value) is type(each) for each in get_args(kind))
    base = get_origin(kind) or kind
    if not isinstance(base, type):
        return True  # nothing that can be judged
    if isinstance(value, bool):
        return issubclass(bool, base) and base is not int
    if base is float and isinstance(value, int):
        return False  # to be converted
    return isinstance(value, base) or (issubclass(base, Enum) and isinstance(value, str))
