"""The command `onward`: mounts the commands of the other files of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onward import __version__
from onward.cli import checkpoints
from onward.cli.search_report import search_report
from onward.errors import OnwardError

app = typer.Typer(name="onward", help="Train PyTorch models and lose no work.", no_args_is_help=True)
app.add_typer(checkpoints.app, name="checkpoints")
app.command("search-report")(search_report)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"onward {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Train PyTorch models and lose no work."""


@app.command("demo")
def demo_command(
    steps: Annotated[int, typer.Option(min=16, help="Optimizer steps of the run.")] = 600,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    output_dir: Annotated[Path, typer.Option(help="Each demo makes a folder of its own in here.")] = Path("demo-run"),
    crash: Annotated[bool, typer.Option("--crash/--no-crash", help="Kill the training half-way and resume it.")] = True,
) -> None:
    """Train a small language model on Python's own sources, kill it half-way, and go on as if nothing happened."""
    from onward.cli import demo

    try:
        demo.run(steps, device, output_dir, crash)
    except OnwardError as error:
        typer.echo(f"onward demo: {error}", err=True)
        raise typer.Exit(1) from error
