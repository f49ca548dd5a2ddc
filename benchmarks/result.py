"""What a row hands back, and the statistics in it."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

HAND = "hand-written loop"
TRANSFORMERS = "transformers"
LIGHTNING = "lightning"
ONWARD = "onward"


class UnequalLossError(Exception):
    """Two peers do not train the same model: their times must not be compared."""


@dataclass(frozen=True)
class Settings:
    """How a run was asked for."""

    device: str = "cpu"
    effort: str = "full"
    """`full`, `quick` (all rows in five minutes on two cores) or `smoke` (it runs; the figures mean nothing)."""

    def pick(self, *, full: int, quick: int, smoke: int) -> int:
        """The size that goes with the effort."""
        return {"full": full, "quick": quick, "smoke": smoke}[self.effort]


@dataclass(frozen=True)
class Figure:
    """Values of one peer, one per round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile; the extremes when there are fewer than four values."""
        if len(self.values) < 4:
            return min(self.values), max(self.values)
        first, _, third = statistics.quantiles(self.values, n=4)
        return first, third


@dataclass
class Result:
    """One row of the table."""

    row: str
    title: str
    unit: str
    figures: dict[str, Figure]
    table: str = "same"
    """`same` settings (what the loop costs) or `best` settings (what a user gets)."""
    lower_is_better: bool = True
    target: float | None = None
    """What onward's median is held against, in `unit`."""
    ratio_target: float | None = None
    """What onward's median divided by that of transformers is held against."""
    checked: str = ""
    """What was found equal before anything was timed."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Further measurements, for the JSON file."""

    @property
    def meets_target(self) -> bool | None:
        """Whether onward's median reaches the target; None without a target or a figure."""
        if ONWARD not in self.figures:
            return None
        ours, limit = self.figures[ONWARD].median, self.target
        if limit is None and self.ratio_target is not None and TRANSFORMERS in self.figures:
            limit = self.ratio_target * self.figures[TRANSFORMERS].median
        if limit is None:
            return None
        return ours <= limit if self.lower_is_better else ours >= limit

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        figures = {
            peer: {"median": figure.median, "spread": figure.spread, "values": figure.values}
            for peer, figure in self.figures.items()
        }
        plain = {key: value for key, value in asdict(self).items() if key != "figures"}
        return {**plain, "meets_target": self.meets_target, "figures": figures}


def in_turns(peers: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Figure]:
    """Call every peer once per round, so that a slow minute of the machine falls on all of them."""
    values: dict[str, list[float]] = {peer: [] for peer in peers}
    for at in range(rounds):
        for peer in forth_and_back(peers, at):
            values[peer].append(peers[peer]())
    return {peer: Figure(tuple(found)) for peer, found in values.items()}


def forth_and_back(peers: Iterable[str], at: int) -> list[str]:
    """The order of round `at`, in which nobody is always first."""
    return list(peers)[:: 1 if at % 2 == 0 else -1]


def calm(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    """The faster half of the rounds, judged by all peers together: in the others the machine was disturbed."""
    rounds = list(zip(*(figure.values for figure in figures.values()), strict=True))
    limit = statistics.median(map(sum, rounds))
    kept = [sum(values) <= limit for values in rounds]
    return {peer: Figure(tuple(itertools.compress(figure.values, kept))) for peer, figure in figures.items()}


def over(floor: Figure, figure: Figure) -> Figure:
    """`figure` minus `floor`, round by round."""
    return Figure(tuple(value - base for value, base in zip(figure.values, floor.values, strict=True)))


def check_losses(losses: Mapping[str, list[float]], reference: str, tolerance: float) -> str:
    """Compare every peer's losses with those of `reference`; returns the finding, raises `UnequalLossError`."""
    expected = losses[reference]
    worst = 0.0
    for peer, found in losses.items():
        if len(found) != len(expected):
            raise UnequalLossError(f"{peer} computed {len(found)} losses, {reference} {len(expected)}")
        for at, (a, b) in enumerate(zip(found, expected, strict=True)):
            # `not (… <= …)` so that a NaN counts as unequal
            if not abs(a - b) <= tolerance * max(1.0, abs(b)):
                raise UnequalLossError(f"loss {at} is {a!r} in {peer}, {b!r} in {reference}")
            worst = max(worst, abs(a - b))
    how = "equal to the bit" if worst == 0 else f"equal within {worst:.1e}"
    return f"{len(expected)} losses of {', '.join(losses)}: {how}"
