"""Arguments as dicts, JSON and text, for checkpoints, trackers and people. Tokens are masked in all of them."""

from __future__ import annotations

import json
from dataclasses import fields
from enum import Enum
from typing import Any

import torch

from onward.arguments.accelerator_config import AcceleratorConfig
from onward.arguments.derived import DerivedArguments
from onward.arguments.kinds import without_numpy


class SerialisedArguments(DerivedArguments):
    """`to_dict`, `to_json_string`, `to_sanitized_dict` and the text form."""

    def to_dict(self) -> dict[str, Any]:
        """Return all arguments as values that JSON knows, as far as that is possible; tokens are masked."""
        return {
            entry.name: _mask(entry.name) if entry.name.endswith("_token") else _plain(getattr(self, entry.name))
            for entry in fields(self)
            if entry.init
        }

    def to_json_string(self) -> str:
        """Return `to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_sanitized_dict(self) -> dict[str, Any]:
        """Return `to_dict` and both batch sizes, with anything but numbers, text and tensors turned into text."""
        values = {**self.to_dict(), "train_batch_size": self.train_batch_size, "eval_batch_size": self.eval_batch_size}
        plain = (bool, int, float, str, torch.Tensor)
        return {name: value if type(value) in plain else str(value) for name, value in values.items()}

    def __str__(self) -> str:
        lines = []
        for name in sorted(entry.name for entry in fields(self)):
            value = getattr(self, name)
            if name.endswith("_token"):
                value = _mask(name)
            elif isinstance(value, AcceleratorConfig):
                value = value.to_dict()
            lines.append(f"{name}={value},\n")
        return f"{type(self).__name__}(\n{''.join(lines)})"

    __repr__ = __str__


def _mask(name: str) -> str:
    return f"<{name.upper()}>"


def _plain(value: Any) -> Any:
    """Replace enumerations, number formats and config objects by what JSON can hold."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    for method in ("to_dict", "to_json"):  # generation and quantization configs; accelerate's ParallelismConfig
        if hasattr(value, method) and not isinstance(value, type):
            return getattr(value, method)()
    return without_numpy(value)
