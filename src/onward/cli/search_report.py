"""`onward search-report DIR`: one HTML page about a hyperparameter search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onward.errors import OnwardError


def search_report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="The output_dir of the search.")
    ],
    output: Annotated[Path | None, typer.Option(help="File to write; DIR/search-report.html by default.")] = None,
) -> None:
    """Write history, importance and parallel coordinates of a search into one HTML file, and print where it is."""
    from onward.search.report import write_report

    try:
        typer.echo(str(write_report(folder, output)))
    except OnwardError as error:
        typer.echo(f"onward search-report: {error}", err=True)
        raise typer.Exit(1) from error
