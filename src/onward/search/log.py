"""``trials.jsonl`` in the output folder: every trial of a search, whatever the backend, for whoever comes later.

The first row of a search is about the search, ``{"study": …, "backend": …, "directions": […], "n_trials": …}``, and
each further row is a trial that ended (`TrialRow`). Rows are only appended; the last row of a trial counts, and so does
the last search. Several processes that work on one study append to one file.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from onward.errors import UsageError
from onward.state import plain_value

FILE_NAME = "trials.jsonl"


@dataclass
class TrialRow:
    """One trial that ended."""

    trial: str
    """Id of the trial: the ``run_id`` of a `BestRun`."""
    name: str
    """Name of its folder in the output folder."""
    state: str
    """``complete``, ``pruned`` or ``failed``."""
    values: list[float] | None = None
    """Its objectives; of a pruned trial the last one that was reported."""
    params: dict[str, Any] = field(default_factory=dict)
    """What was sampled."""
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    """What was applied to the arguments, or is for ``model_init``."""
    distributions: dict[str, str] = field(default_factory=dict)
    """Where `params` were sampled from, as JSON of Optuna."""
    intermediate: dict[str, float] = field(default_factory=dict)
    """Objectives by optimizer step."""
    error: str | None = None
    """What it failed of."""
    checkpoint: str | None = None
    """Its best or last checkpoint, relative to the output folder where it is in there."""
    began: float | None = None
    ended: float | None = None
    """Seconds since 1970."""


@dataclass
class SearchLog:
    """A search as the file tells it."""

    study: str
    backend: str
    directions: list[str]
    rows: dict[str, TrialRow]

    def best(self) -> list[TrialRow]:
        """The complete trials that no other beats: one, or with several directions a front."""
        signs = [1 if each == "minimize" else -1 for each in self.directions]

        def costs(row: TrialRow) -> list[float]:
            return [sign * value for sign, value in zip(signs, row.values or [], strict=True)]

        complete = [row for row in self.rows.values() if row.state == "complete" and row.values]
        if len(signs) == 1:
            return [min(complete, key=costs)] if complete else []
        return [row for row in complete if not any(_beats(costs(other), costs(row)) for other in complete)]


def _beats(left: list[float], right: list[float]) -> bool:
    return left != right and all(a <= b for a, b in zip(left, right, strict=True))


def begin(folder: str | Path, log: SearchLog, n_trials: int) -> None:
    """Append the row about a search."""
    row = {"study": log.study, "backend": log.backend, "directions": log.directions, "n_trials": n_trials}
    _append(Path(folder), row)


def append(folder: str | Path, study: str, row: TrialRow) -> None:
    """Append a trial."""
    _append(Path(folder), {"of": study, **asdict(row)})


def _append(folder: Path, row: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    line = json.dumps(row, default=_plain) + "\n"
    with open(path, "a+b") as file:
        if file.seek(0, os.SEEK_END) and not _ends_line(file):
            line = "\n" + line  # the process before was killed within a line
        file.write(line.encode())  # one write: rows of several processes do not mix


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def jsonable(values: dict[str, Any]) -> dict[str, Any]:
    """`values` as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps(values, default=_plain))
    return plain


def _plain(value: Any) -> Any:
    try:
        return plain_value(value)
    except TypeError:
        return str(value)


def read(folder: str | Path) -> SearchLog:
    """Read the last search of a folder.

    Raises:
        UsageError: there is none.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise UsageError(f"{path} does not exist; expected the output_dir of a hyperparameter search.")
    log: SearchLog | None = None
    known = {each.name for each in fields(TrialRow)}
    rows: dict[str, dict[str, TrialRow]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue  # cut short by a kill; the trial is written again when the study goes on
        if "study" in values:
            found = rows.setdefault(values["study"], {})
            log = SearchLog(values["study"], values["backend"], values["directions"], found)
        elif "of" in values:
            row = TrialRow(**{name: value for name, value in values.items() if name in known})
            rows.setdefault(values["of"], {})[row.trial] = row
    if log is None:
        raise UsageError(f"{path} tells of no search; expected the output_dir of a hyperparameter search.")
    return log
