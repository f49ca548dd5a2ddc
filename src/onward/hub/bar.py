"""The progress bar of a push that somebody waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from onward.hub.place import Outcome

Draw = Callable[[Outcome | None, int], None]


@contextmanager
def push_bar(title: str, show: bool) -> Iterator[Draw]:
    """Give a function that draws how far a push is and how many wait behind it; without `show` it does nothing."""
    if not show:
        yield lambda outcome, waiting: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"pushing to {title}", total=None)

        def draw(outcome: Outcome | None, waiting: int) -> None:
            if outcome is None:
                return
            behind = f", {waiting} more" if waiting else ""
            text = f"pushing {outcome.name} to {title} (try {outcome.attempts}{behind})"
            progress.update(task, description=text, completed=outcome.sent, total=outcome.total or None)

        yield draw
