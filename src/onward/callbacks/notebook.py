"""The display in a notebook: a bar and a table of the log lines, updated in place in the cell's output."""

from __future__ import annotations

import html
import importlib
import sys
from typing import Any

from onward.callbacks.figures import Picture, cells, count, duration, number

_ROWS = 200
"""Log lines that stay in the table: a notebook is saved with its output."""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook (Jupyter, Colab, VS Code …)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ in ("ZMQInteractiveShell", "Shell")


class NotebookView:
    """One output area, drawn again at each `show`."""

    live = True

    def __init__(self) -> None:
        display: Any = importlib.import_module("IPython.display")
        self._html = display.HTML
        self._rows: list[dict[str, str]] = []
        self._handle = display.display(display.HTML(""), display_id=True)

    def log(self, picture: Picture, logs: dict[str, Any], max_length: int) -> None:
        """Add a log line to the table, for the next drawing."""
        entry = {"step": f"{picture.step:,}"}
        if "epoch" in logs:
            entry["epoch"] = f"{float(logs['epoch']):.2f}"
        self._rows = [*self._rows, {**entry, **dict(cells(logs, max_length))}][-_ROWS:]

    def write(self, text: str) -> None:
        """Print `text` below."""
        print(text)

    def show(self, picture: Picture) -> None:
        """Draw."""
        self._handle.update(self._html(page(picture, self._rows)))

    def close(self) -> None:
        """Nothing is held: the last drawing stays in the notebook."""


def page(picture: Picture, rows: list[dict[str, str]]) -> str:
    """The whole display as HTML; everything that came from a log is escaped."""
    parts = []
    if picture.max_steps:
        parts.append(_bar(picture.ending or picture.name, picture.step, picture.max_steps))
        parts.append(f"<div>{html.escape(' · '.join(_facts(picture)))}</div>")
    if picture.evaluation is not None:
        done, total = picture.evaluation
        parts.append(_bar("evaluating", done, total) if total else f"<div>evaluating: {done:,} batches</div>")
    return "".join(parts) + _table(rows)


def _bar(label: str, done: int, total: int) -> str:
    return (
        f"<div><b>{html.escape(label)}</b> <progress value='{done}' max='{total}' style='width:20em'></progress> "
        f"{done:,}/{total:,}</div>"
    )


def _facts(picture: Picture) -> list[str]:
    facts = [f"{duration(picture.elapsed)} elapsed"]
    if picture.left is not None and not picture.ending:
        facts.append(f"{duration(picture.left)} left")
    if picture.epoch is not None:
        facts.append(f"epoch {picture.epoch:.2f}/{picture.epochs}")
    if picture.losses:
        facts.append(f"loss {number(picture.losses[-1])}")
    if picture.tokens_per_second is not None:
        facts.append(f"{count(picture.tokens_per_second)} tok/s")
    if picture.steps_per_second is not None:
        facts.append(f"{picture.steps_per_second:.3g} steps/s")
    return facts + [fact for fact in (picture.memory, picture.best, picture.reason) if fact]


def _table(rows: list[dict[str, str]]) -> str:
    if not rows:
        return ""
    columns = list(dict.fromkeys(name for entry in rows for name in entry))
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(entry.get(name, ''))}</td>" for name in columns) + "</tr>" for entry in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
