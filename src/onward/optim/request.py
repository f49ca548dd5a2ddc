"""What an optimizer recipe is handed: the arguments, the model, and the parsed `optim_args`."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onward.errors import MissingDependency, UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

_TRUE = ("true", "1", "yes", "on")
_FALSE = ("false", "0", "no", "off")


def flag(text: str) -> bool:
    """Read a truth value from the text of an option."""
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(f"{text!r} is neither true nor false")


class OptimArgs:
    """The options of `optim_args`, a string like ``"rank=64,scale=2.0"``, read by name and type.

    It remembers which names a recipe asked for, so that the rest can be reported instead of being dropped in silence.
    """

    def __init__(self, text: str | None) -> None:
        self._given: dict[str, str] = {}
        self._asked: set[str] = set()
        for part in (text or "").replace(" ", "").split(","):
            if not part:
                continue
            name, sign, value = part.partition("=")
            if not (name and sign and value):
                raise UsageError(f"optim_args: got {part!r} in {text!r}, expected name=value pairs separated by commas")
            self._given[name] = value

    def get(self, name: str, kind: Callable[[str], Any], default: Any) -> Any:
        """Return the option as ``kind``, or ``default`` where it was not given."""
        self._asked.add(name)
        if name not in self._given:
            return default
        try:
            return kind(self._given[name])
        except ValueError as error:
            wanted = "true or false" if kind is flag else f"a value of type {kind.__name__}"
            raise UsageError(f"optim_args: got {name}={self._given[name]}, expected {wanted}") from error

    def given(self, kind: Callable[[str], Any], *names: str) -> dict[str, Any]:
        """Return those of ``names`` that were given; the optimizer's own defaults stand for the rest."""
        return {name: self.get(name, kind, None) for name in names if self._ask(name)}

    def _ask(self, name: str) -> bool:
        self._asked.add(name)
        return name in self._given

    def report_unread(self, optimizer: str) -> None:
        """Warn of options that the optimizer has no use for."""
        for name in self._given.keys() - self._asked:
            log.warning("optim_args: %s does not read %r.%s", optimizer, name, did_you_mean(name, self._asked))


@dataclass(frozen=True)
class Request:
    """One wish for an optimizer: its name, the training arguments, and the model where a recipe needs it."""

    name: str
    args: Any
    model: nn.Module | None
    options: OptimArgs

    @property
    def lr(self) -> dict[str, Any]:
        """The learning rate alone."""
        return {"lr": self.args.learning_rate}

    @property
    def betas(self) -> tuple[float, float]:
        """Decay rates of the running means of the gradient and of its square."""
        return (self.args.adam_beta1, self.args.adam_beta2)

    @property
    def adam(self) -> dict[str, Any]:
        """Learning rate, betas and epsilon: what every member of the Adam family takes."""
        return {**self.lr, "betas": self.betas, "eps": self.args.adam_epsilon}

    def needs_model(self) -> nn.Module:
        """Return the model, or say that this optimizer cannot be built without one."""
        if self.model is None:
            raise UsageError(f"optim={self.name!r} looks into the model: got no model, expected one as an argument")
        return self.model


def require(module: str, install: str, wanted_by: str) -> Any:
    """Import an optional package, or raise `MissingDependency` naming the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependency(
            f"{wanted_by} needs the package {module.partition('.')[0]!r}, which could not be imported ({error}). "
            f"Install it with: pip install {install}"
        ) from error
