"""Whether each argument is of the type that its field names: ``bf16="False"`` would be taken for true otherwise."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from onward.arguments.extras import value_of
from onward.arguments.fields import ArgumentFields
from onward.errors import UsageError

if TYPE_CHECKING:
    from onward.arguments.training_arguments import TrainingArguments


def _is_flag(value: Any) -> bool:
    return value in (True, False, None)  # 0, 1 and numpy's, as configurations hold them; None is off


def _is_whole(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    try:
        return value == value and abs(float(value)) < float("inf") and not isinstance(value, str)
    except (TypeError, ValueError):
        return False


# How a field's annotation is written: the words for it, and what tells whether a value fits.
KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "bool": ("True or False", _is_flag),
    "int": ("a whole number", _is_whole),
    "float": ("a finite number", _is_number),
    "str": ("text", lambda value: isinstance(value, str | os.PathLike)),
    "list[str]": ("a list of names", lambda value: isinstance(value, list | tuple)),
    "dict[str, bool]": ("a dictionary", lambda value: isinstance(value, Mapping)),
    "dict[str, Any] | str": ("a dictionary or a JSON object", lambda value: isinstance(value, Mapping | str)),
    "dict | str": ("a dictionary or a JSON object", lambda value: isinstance(value, Mapping | str)),
}
SEVERAL_TYPES = ("accelerator_config", "deepspeed", "fsdp", "max_shard_size", "resume_from_checkpoint")
"""Fields that take more than their annotation says, and are checked where they are used."""
NONE_TOO = (
    "max_grad_norm", "train_sampling_strategy", "length_column_name", "project",
    "logging_steps", "save_steps", "num_train_epochs",
)  # fmt: skip
"""Fields that configurations switch off by None, whatever transformers' annotation says. The last three where nothing
goes by them: another strategy, `max_steps`."""


@functools.cache
def _expected() -> list[tuple[str, bool, str, Callable[[Any], bool]]]:
    """Name, whether `None` will do, words and check of every field that has a plain type."""
    found = []
    for name, annotation in _annotations().items():
        kind = annotation.removesuffix(" | None")
        if kind in KINDS and name not in SEVERAL_TYPES:
            found.append((name, kind != annotation or name in NONE_TOO, *KINDS[kind]))
    return found


def _annotations() -> dict[str, str]:
    """The types of all fields as they are written. `Field.type` will not do: a parser puts what it made of it there."""
    found: dict[str, str] = {}
    for base in reversed(ArgumentFields.__mro__):
        found.update(vars(base).get("__annotations__", {}))
    return found


def leave_numpy(args: TrainingArguments) -> None:
    """Turn numpy's numbers and arrays, as sweeps and configurations bring them, into Python's: JSON knows no others."""
    for name, value in vars(args).items():
        plain = without_numpy(value)
        if plain is not value:
            setattr(args, name, plain)


def without_numpy(value: Any) -> Any:
    """Return the same with Python's numbers and lists; `value` itself where there is nothing of numpy's in it."""
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    if type(value) is dict:
        parts = {key: without_numpy(item) for key, item in value.items()}
        return parts if any(parts[key] is not value[key] for key in value) else value
    if type(value) in (list, tuple):
        items = type(value)(map(without_numpy, value))
        return items if any(now is not before for now, before in zip(items, value, strict=True)) else value
    return value


def check_types(args: TrainingArguments) -> None:
    """Raise `UsageError` for a value whose type its field cannot take."""
    for name, may_be_none, words, fits in _expected():
        value = value_of(args, name)
        if fits is _is_whole and isinstance(value, float) and value.is_integer():
            value = int(value)  # as searches and configurations give them
            setattr(args, name, value)
        if (value is None and may_be_none) or fits(value):
            continue
        got = f"the text {value!r}" if isinstance(value, str) else f"{value!r} ({type(value).__name__})"
        hint = " In YAML write 5.0e-5, not 5e-5." if words == "a finite number" and isinstance(value, str) else ""
        raise UsageError(f"{name} got {got}; expected {words}{' or None' if may_be_none else ''}.{hint}")
