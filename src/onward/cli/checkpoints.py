"""`onward checkpoints ls|verify|rm-stale DIR`: what a run folder holds, what is whole, what crashed saves left."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Annotated

import typer

from onward.checkpoint import layout, manifest, pins, staging, store
from onward.errors import BrokenCheckpoint

app = typer.Typer(help="List, verify and tidy the checkpoints of a run.", no_args_is_help=True)
Deep = Annotated[bool, typer.Option("--deep/--quick", help="Hash every file, or compare sizes only.")]
Folder = Annotated[
    Path, typer.Argument(metavar="DIR", exists=True, file_okay=False, help="Folder of a run, or one checkpoint.")
]


@app.command("ls")
def ls(folder: Folder, deep: Deep = True) -> None:
    """Show step, time, size, whole or not and why, best, pinned. Exit code 1 if one is broken."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=str(folder))
    for heading in ("step", "saved", "size", "whole", "", "folder"):
        table.add_column(heading, justify="right" if heading in ("step", "size") else "left")
    broken = 0
    found = _checkpoints(folder)
    best = _best_of(found)
    for each in found:
        wrong = store.problems(each.path, deep=deep)
        broken += bool(wrong)
        verdict = "[green]yes" if not wrong else f"[red]no[/red]: {escape('; '.join(wrong))}"
        marks = [name for name, holds in (("best", each.path == best), ("pinned", pins.is_pinned(each.path))) if holds]
        table.add_row(str(each.step), _time(each), _size(_bytes(each.path)), verdict, " ".join(marks), each.path.name)
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    for stale in staging.find_staging(folder):
        console.print(f"{stale.path.name}: {_size(stale.size)}, {_state_of(stale)}")
    raise typer.Exit(1 if broken else 0)


@app.command("verify")
def verify(folder: Folder) -> None:
    """Hash every file of every checkpoint and print what is wrong. Exit code 1 if one is broken."""
    found = _checkpoints(folder)
    if not found:
        typer.echo(f"{folder} holds no checkpoint.")
    broken = 0
    for each in found:
        wrong = store.problems(each.path)
        broken += bool(wrong)
        typer.echo(f"{each.path}: {'whole' if not wrong else 'NOT WHOLE'}")
        for line in wrong:
            typer.echo(f"  {line}")
    raise typer.Exit(1 if broken else 0)


@app.command("rm-stale")
def rm_stale(
    folder: Folder,
    others: Annotated[
        bool, typer.Option("--others", help="Also those whose owner cannot be checked from here (another machine).")
    ] = False,
) -> None:
    """Delete what crashed saves left behind; checkpoints are never touched."""
    for stale in staging.find_staging(folder):
        if stale.gone or others:
            staging.remove_staging(stale.path)
            typer.echo(f"deleted {stale.path} ({_size(stale.size)})")
        else:
            typer.echo(f"kept {stale.path} ({_size(stale.size)}): {_state_of(stale)}")


def _checkpoints(folder: Path) -> list[store.Checkpoint]:
    if layout.step_of(folder) is not None or (folder / layout.MANIFEST).exists():
        return [store.Checkpoint(folder, store.recorded_step(folder) or 0, saved_at=_saved_at(folder))]
    return store.list_checkpoints(folder)


def _best_of(found: list[store.Checkpoint]) -> Path | None:
    """Return the best checkpoint by the newest readable trainer state, wherever the run folder is now."""
    for each in reversed(found):
        try:
            state = json.loads((each.path / layout.TRAINER_STATE).read_text(encoding="utf-8"))
            best = state.get("best_model_checkpoint")
        except (OSError, ValueError, AttributeError):
            continue
        return each.path.parent / Path(best).name if best else None
    return None


def _saved_at(path: Path) -> float | None:
    try:
        recorded = manifest.read(path)
    except BrokenCheckpoint:
        return None
    return None if recorded is None else recorded.saved_at


def _time(each: store.Checkpoint) -> str:
    seconds = each.path.stat().st_mtime if each.saved_at is None else each.saved_at
    return datetime.datetime.fromtimestamp(seconds).isoformat(sep=" ", timespec="seconds")


def _bytes(path: Path) -> int:
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _state_of(stale: staging.Stale) -> str:
    return "left by a process that is gone; rm-stale deletes it" if stale.gone else "its owner may still be writing"
