"""One HTML page about a search: its trials, and Optuna's plots of history, importance and parallel coordinates.

It is made from ``trials.jsonl`` alone, so it works for every backend, while the search runs, and after it was killed.
"""

from __future__ import annotations

import html
import logging
import math
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from onward.errors import MissingDependency, UsageError
from onward.search import log

logger = logging.getLogger(__name__)

FILE_NAME = "search-report.html"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; font-size: 14px; }}
td, th {{ padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: left; }}
.best {{ background: #e8f5e9; }} .failed {{ color: #b00020; }} .pruned {{ color: #777; }}
</style></head><body><h1>{title}</h1><p>{summary}</p>
{plots}
<h2>Trials</h2><table><tr>{headings}</tr>
{rows}
</table></body></html>
"""


def write_report(folder: str | Path, target: str | Path | None = None) -> Path:
    """Write the report of the last search in `folder`; returns where it is.

    Raises:
        UsageError: there was no search, or no trial of it ended yet.
        MissingDependency: Optuna or plotly is not installed.
    """
    if find_spec("optuna") is None or find_spec("plotly") is None:
        raise MissingDependency("The report needs Optuna and plotly: pip install 'onward[optuna]'.")
    import optuna

    found = log.read(folder)
    if not found.rows:
        raise UsageError(f"No trial in {folder} has ended yet, so there is nothing to report.")
    path = Path(folder) / FILE_NAME if target is None else Path(target)
    path.write_text(_page(found, study_of(found, optuna)), encoding="utf-8")
    return path


def study_of(found: log.SearchLog, optuna: Any) -> Any:
    """Rebuild the search as a study in memory."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(directions=found.directions, study_name=found.study)
        known = _distributions(found, optuna)
        for row in found.rows.values():
            state = {"complete": "COMPLETE", "pruned": "PRUNED"}.get(row.state, "FAIL")
            params = {name: value for name, value in row.params.items() if name in known}
            trial = optuna.trial.create_trial(
                state=optuna.trial.TrialState[state],
                values=row.values if row.state == "complete" else None,
                params=params,
                distributions={name: known[name] for name in params},
                intermediate_values={int(step): value for step, value in row.intermediate.items()},
            )
            study.add_trial(trial)
    finally:
        optuna.logging.set_verbosity(verbosity)
    return study


def _distributions(found: log.SearchLog, optuna: Any) -> dict[str, Any]:
    """Where each parameter was sampled from: as recorded, else as wide as what was tried."""
    known: dict[str, Any] = {}
    tried: dict[str, list[Any]] = {}
    for row in found.rows.values():
        for name, text in row.distributions.items():
            known[name] = optuna.distributions.json_to_distribution(text)
        for name, value in row.params.items():
            tried.setdefault(name, []).append(value)
    for name, values in tried.items():
        if name in known:
            continue
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            low, high = float(min(values)), float(max(values))
            log_scale = low > 0 and high / low > 30
            known[name] = optuna.distributions.FloatDistribution(low, high, log=log_scale)
        elif all(isinstance(value, str | bool | int | float | None) for value in values):
            known[name] = optuna.distributions.CategoricalDistribution(list(dict.fromkeys(values)))
    return known


def _page(found: log.SearchLog, study: Any) -> str:
    best = {row.trial for row in found.best()}
    names = sorted({name for row in found.rows.values() for name in row.params})
    counts = {
        state: sum(row.state == state for row in found.rows.values()) for state in ("complete", "pruned", "failed")
    }
    goal = ", ".join(f"objective {number}: {each}" for number, each in enumerate(found.directions))
    summary = f"{found.backend}, {goal}; " + ", ".join(f"{count} {state}" for state, count in counts.items())
    headings = ["trial", "state", "objective", *names, "seconds", "error"]
    return _PAGE.format(
        title=html.escape(f"Search {found.study}"),
        summary=html.escape(summary),
        plots="\n".join(_plots(found, study)),
        headings="".join(f"<th>{html.escape(name)}</th>" for name in headings),
        rows="\n".join(_table_row(row, names, row.trial in best) for row in found.rows.values()),
    )


def _table_row(row: log.TrialRow, names: list[str], is_best: bool) -> str:
    seconds = f"{row.ended - row.began:.1f}" if row.began is not None and row.ended is not None else ""
    values = ", ".join(f"{value:.6g}" for value in row.values or [])
    params = [f"{row.params[n]:.4g}" if isinstance(row.params.get(n), float) else row.params.get(n, "") for n in names]
    cells = [row.trial, row.state, values, *params, seconds, row.error or ""]
    kind = "best" if is_best else row.state
    return f'<tr class="{kind}">' + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>"


def _plots(found: log.SearchLog, study: Any) -> list[str]:
    """Each plot as HTML, or the reason why there is none."""
    from optuna import visualization

    script: bool | str = True  # plotly's own script stands in the page once, so that it opens without a network
    pieces = []
    for number, direction in enumerate(found.directions):
        about: dict[str, Any] = {}
        if len(found.directions) > 1:
            about = {"target": _objective(number), "target_name": f"objective {number}"}
        for title, plot in (
            ("History", visualization.plot_optimization_history),
            ("Importance of hyperparameters", visualization.plot_param_importances),
            ("Parallel coordinates", visualization.plot_parallel_coordinate),
        ):
            pieces.append(f"<h2>{title}{f' of objective {number} ({direction})' if about else ''}</h2>")
            try:
                with warnings.catch_warnings():
                    # The importance is always that for low values of a target.
                    warnings.filterwarnings("ignore", message="PedAnova")
                    figure = plot(study, **about)
                pieces.append(figure.to_html(full_html=False, include_plotlyjs=script))
                script = False
            except (ValueError, RuntimeError, ImportError) as error:  # too few trials, or all alike
                pieces.append(f"<p>Not drawn: {html.escape(str(error))}</p>")
    return pieces


def _objective(number: int) -> Any:
    def value(trial: Any) -> float:
        return float(trial.values[number]) if trial.values else math.nan

    return value
