"""The part of accelerate's settings that a run may choose."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, fields
from typing import Any

from onward.errors import UnknownArgument, UsageError, did_you_mean


@dataclass
class AcceleratorConfig:
    """Settings handed to `accelerate.Accelerator`, mostly about how batches are shared between processes."""

    split_batches: bool = False
    """Read the batch size as that of all processes together: each one gets its part of a batch."""
    dispatch_batches: bool | None = None
    """Load on the first process only and send the others their part; None does so for streams."""
    even_batches: bool = True
    """Repeat samples from the start of the set so that every process gets a last batch of the same size."""
    use_seedable_sampler: bool = True
    """Draw the order of samples from a seed of its own, not from torch's generator."""
    non_blocking: bool = False
    """Copy batches to the device without waiting; needs pinned memory."""
    gradient_accumulation_kwargs: dict[str, Any] | None = None
    """Settings of accelerate's GradientAccumulationPlugin: ``num_steps`` and ``sync_each_batch``."""
    use_configured_state: bool = False
    """Use the accelerate state that exists already instead of starting one."""

    @classmethod
    def build(cls, given: Any) -> AcceleratorConfig:
        """Make a config from None, a dict, a path of a JSON file, or any object with ``to_dict``."""
        if given is None:
            return cls()
        if isinstance(given, cls):
            return given
        if isinstance(given, type):
            raise UsageError(
                f"accelerator_config got the class {given.__name__}; expected an instance: write {given.__name__}()."
            )
        if hasattr(given, "to_dict"):
            given = given.to_dict()
        if not isinstance(given, dict):
            return cls.from_json_file(given)
        return cls._from_dict(given, "accelerator_config")

    @classmethod
    def from_json_file(cls, json_file: str) -> AcceleratorConfig:
        """Read a config from a JSON file; unknown keys are an error."""
        try:
            with open(json_file, encoding="utf-8") as file:
                content = json.load(file)
        except (OSError, ValueError) as problem:
            raise UsageError(f"accelerator_config got {str(json_file)!r}; expected a JSON file: {problem}") from problem
        return cls._from_dict(content, str(json_file))

    @classmethod
    def _from_dict(cls, content: dict[str, Any], source: str) -> AcceleratorConfig:
        known = [entry.name for entry in fields(cls)]
        for key in content:
            if key not in known:
                raise UnknownArgument(
                    f"{source} has the unknown key {key!r}; expected some of {', '.join(known)}."
                    f"{did_you_mean(key, known)}"
                )
        return cls(**content)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as a dict of its own, safe to change."""
        return copy.deepcopy(self.__dict__)

    def pop(self, key: str, default: Any = None) -> Any:
        """Remove a setting and return it, as accelerate-aware code does with a dict."""
        return self.__dict__.pop(key, default)
