"""What is asked of a search, and where the evaluations of its trials go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from onward.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from onward.hooks.searching import SearchHooks

DIRECTIONS = ("minimize", "maximize")


class Reporter(Protocol):
    """Is told how trials are doing."""

    def opened(self, host: SearchHooks, trial: Any) -> None:
        """Note that a trial's hyperparameters are applied."""

    def report(self, host: SearchHooks, trial: Any, step: int, metrics: dict[str, float]) -> None:
        """Hand on an evaluation; may raise what ends a trial that is given up."""


@dataclass
class Request:
    """The arguments of `Trainer.hyperparameter_search`."""

    hp_space: Callable[[Any], dict[str, Any]] | None
    compute_objective: Callable[[dict[str, float]], Any] | None
    n_trials: int
    direction: str | list[str]
    hp_name: Callable[[Any], str] | None
    options: dict[str, Any]

    @property
    def directions(self) -> list[str]:
        """One direction for each objective."""
        return [self.direction] if isinstance(self.direction, str) else list(self.direction)

    @property
    def is_multi_objective(self) -> bool:
        """Whether there are several objectives, and so a list of best runs."""
        return not isinstance(self.direction, str)

    def check(self) -> None:
        """Raise `UsageError` for what no backend can do."""
        if isinstance(self.n_trials, bool) or not isinstance(self.n_trials, int) or self.n_trials < 1:
            raise UsageError(f"n_trials got {self.n_trials!r}; expected a whole number of at least 1.")
        for each in self.directions or [""]:
            if each not in DIRECTIONS:
                raise UsageError(
                    f"direction got {self.direction!r}; expected 'minimize' or 'maximize', or a list of these with one "
                    f"for each objective.{did_you_mean(each, DIRECTIONS)}"
                )
